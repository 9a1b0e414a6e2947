"""State is bounded: keys that are idle, windows that are over, and values nobody holds are forgotten."""

from __future__ import annotations

import types
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from headrace.streams import aggregations as agg
from headrace.streams import asof, index, inputs
from headrace.streams.batch import one_by_one
from headrace.streams.event import Event
from headrace.streams.expressions import Expression, col
from headrace.streams.features import Features, FeatureSet, WindowSet, operator
from headrace.streams.index import Index
from headrace.streams.windows import last_n, session, sliding, tumbling

from .columns import Told, batch
from .stage import SECOND, START, Stage, moment

KEYS = 4_000
"""Keys that come and go: each has its events in two seconds, and is never heard of again."""
FROM = 64
"""Where the tests let the tables begin to look; the product begins at index.SWEEP_FROM."""


class Visit(Event, topic="visits", key="who", time="at", lateness="3s"):
    who: str
    n: int
    page: str
    at: datetime


STREAM = agg.stream(Visit)


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SWEEP_FROM", FROM)


def feature_set(features: Mapping[str, Expression], **options: Any) -> FeatureSet | WindowSet:
    options = {"of": Visit, "by": "who"} | options
    return operator(types.new_class("Per", (Features,), options, lambda body: body.update(features)))


def folds(over: Any) -> dict[str, Expression]:
    return {
        "n": agg.count(over), "spread": agg.variance(col.n, over), "page": agg.last(col.page, over),
        "pages": agg.distinct(col.page, over), "rough": agg.distinct(col.page, over, approximate=True),
        "half": agg.quantile(col.n, 0.5, over),
    }  # fmt: skip


def visit(key: int, second: float) -> Told:
    at = START + round(second * SECOND)
    return ("visits", at, {"who": f"k{key}", "n": key, "page": f"/page/{key}", "at": at})


def pass_through(step: FeatureSet | WindowSet, keys: int = KEYS) -> tuple[int, int]:
    """Two visits of each key in turn, ten keys a second; the most rows of state, and the most keys, ever held."""
    state: dict[bytes, bytes] = {}
    rows = most = 0
    for begin in range(0, keys, 100):
        events = [visit(k, k / 10 + more) for k in range(begin, begin + 100) for more in (0, 1)]
        events.sort(key=lambda event: event[1])
        mark, newest = [], 0
        for _, time, _ in events:
            newest = max(newest, time)
            mark.append(newest)
        step.process(batch([STREAM], events, mark), [])
        for key, value in one_by_one(step.changes()):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        rows, most = max(rows, len(state)), max(most, step.entities.used)
    return rows, most


KINDS: dict[str, tuple[dict[str, Expression], dict[str, Any]]] = {
    "as of each event, sliding": (folds("10s"), {}),
    "as of each event, tumbling": (folds(tumbling("10s")), {}),
    "as of each event, sessions": (folds(session("5s")), {}),
    "results, tumbling": (folds(None), {"window": tumbling("10s")}),
    "results, sliding": (folds(None), {"window": sliding("10s", every="5s")}),
    "results, sessions": (folds(None), {"window": session("5s")}),
}


@pytest.mark.parametrize(("features", "options"), list(KINDS.values()), ids=list(KINDS))
def test_keys_that_are_idle_beyond_every_window_are_forgotten(
    features: dict[str, Expression], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asof, "WAKE", 0)  # a day of it would take a million keys
    step = feature_set(features, **options)
    rows, most = pass_through(step)
    live = 10 * (10 + 10 + 3 + 1)  # keys a second, over window, pane, lateness and the batch in hand
    assert most <= 2 * live + FROM + 200
    assert len(step.entities) == most or len(step.entities) <= most + 200  # numbers are given again
    assert rows <= 30 * most  # panes, values, bins and registers of the keys held


def test_what_is_folded_for_all_time_is_kept() -> None:
    step = feature_set({"n": agg.count(), "recent": agg.count("10s")})
    _, most = pass_through(step, 1_000)
    assert most == 1_000


def test_the_last_events_of_a_key_are_kept_however_long_ago() -> None:
    step = feature_set({"n": agg.count(last_n(2))})
    _, most = pass_through(step, 1_000)
    assert most == 1_000


def test_a_key_that_comes_back_begins_anew_and_others_keep_theirs() -> None:
    step = feature_set({"n": agg.count("10s")})
    pass_through(step, 1_000)
    made = batch([STREAM], [visit(0, 101), visit(999, 102), visit(0, 103)])
    step.process(made, [])
    assert made.streams["visits"].fields["Per.n"].tolist() == [1, 3, 2]


def test_texts_and_values_that_no_pane_holds_are_forgotten_while_their_key_lives() -> None:
    step = feature_set({"page": agg.last(col.page), "k": agg.distinct(col.page, "10s", where=col.n > 1)})
    assert isinstance(step, FeatureSet)
    state: dict[bytes, bytes | None] = {}
    for second in range(0, 3_000, 20):
        events = [(t, at, row | {"who": "one"}) for t, at, row in (visit(second + i, second + i) for i in range(20))]
        step.process(batch([STREAM], events), [])
        state.update(one_by_one(step.changes()))
    live = {key for key, value in state.items() if value is not None}
    assert len(live) < 3 * FROM
    indexes = [index for table in step._tables.values() for index in (*table.texts.values(), *table.values.values())]
    assert [index.used < 3 * FROM for index in indexes] == [True, True]
    again = feature_set({"page": agg.last(col.page), "k": agg.distinct(col.page, "10s", where=col.n > 1)})
    again.load([(key, value) for key, value in state.items() if value is not None])
    seen = []
    for one in (step, again):
        made = batch([STREAM], [("visits", START + 3_000 * SECOND, visit(7, 3_000)[2] | {"who": "one"})])
        one.process(made, [])
        one.changes()
        seen.append([made.streams["visits"].fields[name].tolist() for name in ("Per.page", "Per.k")])
    assert seen[0] == seen[1] == [["/page/7"], [10]]


def test_an_index_gives_numbers_again_and_reads_back_with_gaps() -> None:
    index = Index(told=True)
    assert index.numbers(["a", "b", None, "c", "a"]).tolist() == [0, 1, -2, 2, 0]
    assert index.fresh() == [0, 1, 2]
    index.release(index.unused(index.numbers(["b"])))
    assert (index.used, len(index)) == (1, 3)
    numbers = index.numbers(["d", "b"]).tolist()
    assert numbers[1] == 1
    assert numbers[0] in (0, 2)
    assert index.fresh() == numbers[:1]
    assert index.encoded(numbers[0]) == b"d"
    again = Index(told=True)
    again.restore({4: "x", 1: "y"})
    assert again.numbers(["x", "y"]).tolist() == [4, 1]
    assert again.fresh() == []
    assert set(again.numbers(["p", "q", "r"]).tolist()) == {0, 2, 3}
    assert again.numbers(["s"]).tolist() == [5]


@pytest.mark.parametrize(("bound", "most"), [("MAX_BUFFERED_ROWS", 3), ("MAX_BUFFERED_BYTES", 100)])
def test_an_input_is_full_at_its_bound_of_rows_and_of_bytes(
    monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(inputs, bound, most)
    stage = Stage([Visit], list)
    [source] = stage.task.inputs
    full = []
    for second in range(3):
        stage.publish(Visit, {"who": "a", "n": 1, "page": "/", "at": moment(second)})
        stage.feed()
        full.append(source.full)
    assert full[0] is False
    assert full[-1] is True
    stage.step()
    assert source.full is False


def test_a_session_that_goes_on_waits_once_for_its_end() -> None:
    step = feature_set({"n": agg.count()}, window=session("5s"))
    assert isinstance(step, WindowSet)
    for second in range(0, 200, 20):
        events = [(t, at, row | {"who": "one"}) for t, at, row in (visit(1, second + i) for i in range(20))]
        step.process(batch([STREAM], events, [START] * 20), [])
        step.changes()
    assert len(step._windows.here()) == 1
