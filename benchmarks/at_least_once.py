"""The window job published at least once: the program beside window's, for guarantees."""

import headrace as hr
from benchmarks.window import PerMinute

app = hr.App("window", features=[PerMinute], guarantee="at_least_once")
