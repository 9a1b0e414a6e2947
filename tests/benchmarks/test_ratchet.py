"""What was won in speed stays won: each fast way beside the plain one, in one run, by the processor's time.

Ratios, never seconds, so that it is the same on any machine. A bound is about half of what was measured when it was
set: it fails where a fast way is no longer taken, and not by chance.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from headrace.models import linear
from headrace.streams.codecs import MsgspecCodec
from headrace.streams.jsoncodec import JsonCodec
from headrace.streams.kafka import BATCH_BYTES, laid_out
from headrace.streams.log import Fetched
from headrace.streams.recordbatches import build
from headrace.streams.spans import Spans
from headrace.streams.store import MemoryStore
from river import linear_model, optim, preprocessing

from benchmarks.window import Trade, app, rows
from headrace import plan

EVENTS = 16_000
ROUNDS = 5


def times_as_fast(fast: Callable[[], Any], plain: Callable[[], Any]) -> float:
    """The median over rounds of how many times the processor's time of one the other is; each is run once before."""
    fast(), plain()
    ratios = []
    for _ in range(ROUNDS):
        spent = []
        for work in (plain, fast):
            began = time.process_time()
            work()
            spent.append(time.process_time() - began)
        ratios.append(spent[0] / spent[1])
    return statistics.median(ratios)


TRADES = rows(EVENTS)
VALUES = [row.value for row in TRADES]
KEYS = [row.key for row in TRADES]
PUBLISHED = np.full(EVENTS, 1_790_000_000_000_000)


def test_flat_json_becomes_columns_many_times_as_fast_as_record_by_record() -> None:
    fast, plain = JsonCodec(Trade), MsgspecCodec(Trade)
    values, keys = Spans.of(VALUES), Spans.of(KEYS)
    ratio = times_as_fast(lambda: fast.decode(values, keys, PUBLISHED), lambda: plain.decode(VALUES, KEYS, PUBLISHED))
    assert ratio > 10, f"{ratio:.1f} times"


def windowed() -> list[bytes]:
    """The window job as one writes it: a dict, an event at a time, nothing kept and nothing sent."""
    decode, encode = msgspec.json.Decoder(Trade).decode, msgspec.json.Encoder().encode
    held: dict[tuple[str, int], tuple[int, int]] = {}
    made = []
    for n, value in enumerate(VALUES):
        event = decode(value)
        window = event.symbol, int(event.at.timestamp()) // 60
        trades, volume = held.get(window, (0, 0))
        trades, volume = held[window] = trades + 1, volume + event.quantity
        made.append(encode({"id": f"trades-0-{n}", "symbol": event.symbol, "at": event.at,
                            "trades": trades, "volume": volume}))  # fmt: skip
    return made


def test_a_whole_cycle_of_the_window_job_is_faster_than_a_bare_loop_of_it() -> None:
    """Decoded, folded, laid out as record batches, with its changelog: all of a cycle but the log and the store."""
    [stage] = plan.stages(app)
    fetched = Spans.of(VALUES), Spans.of(KEYS)

    def cycle() -> int:
        task, _ = stage.build(0, MemoryStore())
        task.resume()
        values, keys = fetched
        [source] = task.inputs
        task.feed(Fetched(source.partition, np.arange(EVENTS), PUBLISHED // 1000, keys, values, EVENTS, EVENTS))
        work = task.work(EVENTS)
        assert work is not None
        return sum(count for part in (work.records, task.logged(work.changes))
                   for _, count in build(*laid_out(part), BATCH_BYTES))  # fmt: skip

    assert cycle() > EVENTS
    ratio = times_as_fast(cycle, windowed)
    assert ratio > 1.2, f"{ratio:.1f} times"


def test_a_compiled_twin_learns_and_predicts_many_times_as_fast_as_river() -> None:
    random = np.random.default_rng(1)
    names = [f"f{n}" for n in range(12)]
    x, y = random.normal(size=(4_000, 12)), random.random(4_000) < 0.1
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optimizer=optim.AdaGrad(0.015))
    shown: list[dict[Any, Any]] = [dict(zip(names, row, strict=True)) for row in x.tolist()]

    def fast() -> None:
        twin = linear.twin(model.clone(), names)
        assert twin is not None
        twin.learn_many(x, y)
        twin.predict_many(x)

    def plain() -> None:
        mine = model.clone()
        for row, outcome in zip(shown, y.tolist(), strict=True):
            mine.learn_one(row, outcome)
        for row in shown:
            mine.predict_proba_one(row)

    ratio = times_as_fast(fast, plain)
    assert ratio > 6, f"{ratio:.1f} times"
