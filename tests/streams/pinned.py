"""Parts of aiokafka that are stood in for: whether they are still as they were when they were read."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import aiokafka


def assert_read(name: str, part: Any, known: str, module: str, tests: str, instead: str) -> None:
    """known: the sum of its source as it was read; instead: what goes without it meanwhile."""
    now = hashlib.sha256(inspect.getsource(part).encode()).hexdigest()[:8]
    assert now == known, (
        f"aiokafka {aiokafka.__version__} has changed {name}. Read what changed, see that the classes of "
        f"{module} still do in its place all that is asked of them, and run this file and "
        f"{tests} against Kafka. Then note the new sum, {now}, here, and the version in "
        f"pyproject.toml. Until then HEADRACE_TRANSPORT=records goes by {instead}."
    )
