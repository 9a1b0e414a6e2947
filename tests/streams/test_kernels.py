"""Kernels: compiled before the first batch and never inside one; without the compiler, the same bits."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from headrace.streams import aggregations as agg
from headrace.streams import hotset, index, jsonkernels, kernels, recordbatches
from headrace.streams.expressions import clip, col, exp, log, log1p, sqrt
from headrace.streams.features import declaration
from headrace.streams.jsoncolumns import JsonColumns
from headrace.streams.memory import Memory
from headrace.streams.outcomes import settled_rows
from headrace.streams.plans import Plan
from headrace.streams.spans import Spans
from headrace.streams.windows import session
from numba.core import event

from .columns import Told
from .stage import Stage, moment
from .test_features import EVERYTHING, feature_set, run
from .test_properties import PARTS, Refund, Sale, whole

KEYLESS = feature_set("Keyless", {"n": agg.count("10s"), "most": agg.max(col.n, "10s")}, by="s")
ROOT = Path(__file__).parents[2]
FUNCTIONS = feature_set(
    "Functions",
    {"log": log(col.x), "log1p": log1p(col.x), "exp": exp(col.x), "power": abs(col.x) ** 1.5, "sqrt": sqrt(col.x),
     "cut": clip(col.x, 0, col.n), "bridged": agg.distinct(col.s, session("4s"), approximate=True)},
)  # fmt: skip


def digest() -> str:
    """What every operator makes of some fixed events, in bytes."""
    random = np.random.default_rng(11)
    stage, second = Stage([Sale, Refund], whole), 0.0
    told: list[Told] = []
    for _ in range(80):
        second += random.choice([0.0, 0.5, 1.0, 4.0])
        time = moment(max(second - random.choice([0.0, 0.0, 0.0, 3.0]), 0))
        row = {
            "who": str(random.choice(["a", "b"])), "n": int(random.integers(-5, 9)), "s": str(random.integers(0, 3)),
            "x": None if random.random() < 0.2 else random.random(),
        }  # fmt: skip
        topic = str(random.choice(["sales", "sales", "refunds"]))
        told.append((topic, round((len(told) + second) * 1e6), row | {"at": round(second * 1e6)}))
        if topic == "sales":
            stage.publish(Sale, row | {"at": time})
        else:
            stage.publish(Refund, {name: row[name] for name in ("who", "n", "s")} | {"at": time})
    stage.publish(Sale, {"who": "z", "n": 1, "x": 1.0, "s": "p", "at": moment(9_000)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "SWEEP_FROM", 0)
        made = [repr(stage.drain((7, 30)))]
        stage.restart()
        patch.setattr(hotset, "SWEPT_AT_LEAST", 1)
        cold = Stage([Sale, Refund], lambda: whole(Memory(1)))
        cold.log = stage.log
        made.append(repr(cold.drain((7, 30))))
        assert made[0] == made[1]
        made += [repr(run(features, told, [7, 30])) for features in (EVERYTHING, FUNCTIONS, KEYLESS)]
    values = Spans.of([json.dumps(row | {"at": moment(row["at"] / 1e6)}).encode() for _, _, row in told])
    plain = JsonColumns(Sale).decode(values, Spans.of([None] * len(told)), np.full(len(told), 10**16))
    made.append(repr([plain.ok.tolist(), plain.time.tolist(), {n: c.tolist() for n, c in plain.columns.items()}]))
    predictions = Spans.of([b'{"id":"sales-0-%d","key":"a","at":"","score":0.5,"features":{}}' % n for n in range(3)])
    moments = {"known": np.arange(3)}
    made.append(repr([list(part) for part in settled_rows(predictions, moments, np.array([True, False, True]))]))
    return hashlib.sha256("".join(made).encode()).hexdigest()


@contextmanager
def called() -> Iterator[set[str]]:
    """The names of the kernels that run meanwhile."""
    names: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        for one in kernels.KERNELS:

            def noting(*args: object, name: str = one.name, run: object = one.compile()) -> object:
                names.add(name)
                return run(*args)  # type: ignore[operator]

            patch.setattr(one, "_run", noting)
        yield names


def test_the_events_of_these_tests_reach_every_kernel_accumulator_reading_and_mode() -> None:
    with called() as names:
        digest()
    # Those of record batches and of outcomes have tests of their own: nothing is on a log or learnt here.
    others = {*recordbatches.KERNELS, jsonkernels.decode_laid}
    others |= {one for one in kernels.KERNELS if one.function.__module__.startswith("headrace.models.")}
    assert names == {one.name for one in kernels.KERNELS if one not in others}
    plans = [Plan(declaration(features)) for features in [*PARTS, EVERYTHING, KEYLESS]]
    every = [table for plan in plans for table in plan.tables.values()]
    assert {a.operation for table in every for a in table.accumulators} == set(range(len(kernels.NAMES)))
    assert {table.mode for table in every} == set(range(kernels.VERSIONS + 1))
    hows = {read.how for table in every for read in table.reads}
    assert hows == set(range(kernels.CARDINALITY + 1))


def test_nothing_is_compiled_in_a_batch_once_the_kernels_are_warm() -> None:
    if kernels.INTERPRETED:
        pytest.skip("nothing is compiled here")
    kernels.warm()
    assert kernels.compiled()
    signatures = {one.name: one.compile().signatures for one in kernels.KERNELS}  # type: ignore[attr-defined]
    with event.install_recorder("numba:compile") as compilations:
        digest()
    assert compilations.buffer == []
    assert {one.name: one.compile().signatures for one in kernels.KERNELS} == signatures  # type: ignore[attr-defined]
    assert {len(each) for each in signatures.values()} == {1}


@pytest.mark.parametrize("bad", [np.zeros(1, np.int32), np.zeros((1, 1)), np.zeros(4)[::2]])
def test_a_type_that_no_kernel_knows_is_refused_rather_than_compiled(bad: object) -> None:
    if kernels.INTERPRETED:
        pytest.skip("nothing is compiled here")
    with pytest.raises(TypeError):
        kernels.log(bad, np.zeros(1))


def test_without_the_compiler_every_operator_makes_the_same_bytes() -> None:
    command = [sys.executable, "-c", "from tests.streams.test_kernels import digest; print(digest())"]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()


def test_warming_tells_how_far_it_has_come() -> None:
    told: list[tuple[str, int, int]] = []
    kernels.warm(lambda name, done, of: told.append((name, done, of)))
    count = len(kernels.KERNELS)
    assert [(done, of) for _, done, of in told] == [(i + 1, count) for i in range(count)]
