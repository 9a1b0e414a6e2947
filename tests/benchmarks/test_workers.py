"""What the curve over workers and partitions is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import workers
from benchmarks.peers.outputs import Told, Wrong


def told(count: int) -> Told:
    """Outputs, the last of them two seconds after 1970 began."""
    zeros = np.zeros(count, np.int64)
    return Told(zeros, zeros, zeros, np.zeros(count), np.linspace(1, 2_000, count).astype(np.int64))


def test_events_per_second_are_from_the_commit_of_the_events_to_the_last_output() -> None:
    assert workers._row(2, 4, told(100), 100, 1.0, [])["events_per_s"] == 100


def test_a_point_that_lacks_an_output_is_none() -> None:
    with pytest.raises(Wrong, match="99 of 100"):
        workers._row(1, 1, told(99), 100, 1.0, [])


def test_what_it_cannot_show_is_said_where_workers_share_the_cores_with_the_log() -> None:
    assert "is not shown" in workers.told(2)
    assert "is not shown" not in workers.told(4)


def test_the_chart_has_a_line_for_each_number_of_workers_and_each_rate() -> None:
    row: dict[str, Any] = {"events_per_s": 1_000, "events_per_processor_s": 2_000}
    rows = [{"workers": n, "partitions": p, **row} for n in (1, 2) for p in (1, 32)]
    drawn = workers.draw(rows)
    assert drawn.count("<polyline") == 4
    assert "2 workers, by processor" in drawn
