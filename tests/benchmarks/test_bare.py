"""The bare loop that the main job is measured against computes what the pipeline computes."""

from __future__ import annotations

import math
from itertools import groupby

import msgspec
import numpy as np
import pytest
from headrace.streams.batch import record_by_record
from headrace.streams.log import Fetched
from headrace.streams.store import MemoryStore
from headrace.streams.task import Task

from benchmarks import bare
from headrace import plan

LINES = 8_000
"""Of the sample: some are taken back, none has matured."""


def fed(task: Task, lines: list[tuple[str, bytes]]) -> None:
    """The lines as the task's inputs would bring them."""
    at = {source.partition.topic: 0 for source in task.inputs}
    for topic, some in groupby(sorted(lines, key=lambda line: line[0]), lambda line: line[0]):
        [partition] = [s.partition for s in task.inputs if s.partition.topic == topic]
        values = [value for _, value in some]
        offset = np.arange(at[topic], at[topic] + len(values))
        published = np.full(len(values), 1_900_000_000_000)
        keys = [msgspec.json.decode(value)["customer"].encode() or None for value in values]
        task.feed(Fetched(partition, offset, published, keys, values, len(values), len(values)))


def test_its_features_are_those_of_the_pipeline() -> None:
    lines = bare.lines("sample")[:LINES]
    [stage, _] = plan.stages(bare.APP)
    task, _ = stage.build(0, MemoryStore())
    task.resume()
    fed(task, lines)
    theirs = []
    while work := task.work(2_000, frozenset(range(len(task.inputs)))):
        for record in record_by_record(work.records):
            if record.topic == "predictions.returns":
                theirs.append(msgspec.json.decode(record.value or b"")["features"])
    ours = [features for features, _ in bare.run(lines)]
    assert len(ours) == len(theirs) > LINES // 2
    backs = 0
    for n, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert math.isclose(value, other[name], rel_tol=1e-9, abs_tol=1e-9), f"{name} of line {n}"
        backs += mine["item_odds_recent"] > 0
    assert backs, "nothing was taken back: a weak test"


def test_it_learns_each_line_at_its_maturity_and_scores_with_what_it_has_learnt() -> None:
    lines = bare.lines("sample")[:70_000]
    scores = [score for _, score in bare.run(lines)]
    first = scores.index(next(s for s in scores if s != bare.PRIOR))
    assert first > 20_000, "thirty days"
    assert np.std(scores[first:]) > 0.001
    assert np.mean(scores[first:]) == pytest.approx(0.0142, abs=0.006), "about the share that is taken back"
