"""Outcomes are learnt at prediction time plus horizon, in one order, however they came."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
import numpy as np
import pytest
from headrace.models.maturity import Mature, MatureRows
from headrace.streams.batch import Batch, Rows
from headrace.streams.outcomecolumns import OutcomeCodec
from headrace.streams.outcomes import Settled
from headrace.streams.spans import Spans
from headrace.streams.store import MemoryStore

from tests.models.outcomes import HORIZON, T0, columns_of, encoded, settled

SEEDS = range(30)


@dataclass(frozen=True)
class Taken:
    """An outcome let through: which, and the offset after the record that let it."""

    id: str
    seen: int


def published(seed: int, distinct: bool = False) -> list[Settled]:
    """Outcomes in the order of their being known: positives at any moment, the others at the horizon."""
    chance = random.Random(seed)
    made = []
    for n in range(chance.randint(1, 80)):
        at = T0 + timedelta(days=n if distinct else random.Random(n).choice([n, n // 4 * 4]))
        outcome = chance.random() < 0.4
        known = at + HORIZON * (chance.random() if outcome else 1.0)
        made.append(msgspec.structs.replace(
            settled(n, outcome), at=at, matures=at + HORIZON, known=known, watermark=known
        ))  # fmt: skip
    return sorted(made, key=lambda one: (one.known, one.matures))


def mature(outcomes: list[Settled], cut: int | None = None, restart: int = 0) -> list[Taken]:
    """What comes out. cut: the seed of the batches' sizes; restart: loaded anew after so many batches."""
    columns = columns_of(outcomes)
    operator, store, sizes = Mature("returns", columns), MemoryStore(), random.Random(cut)
    found: list[Taken] = []
    done = count = 0
    while done < len(outcomes):
        size = len(outcomes) if cut is None else sizes.choice([1, 2, 9])
        part = Spans.of(encoded(outcomes[done : done + size]))
        at = np.arange(len(part))
        fields = OutcomeCodec(columns).decode(part, [None] * len(part), at).fields
        rows = Rows(at, fields, "outcomes.returns", 0, at + done)
        batch = Batch(np.zeros(len(part), np.int64), np.zeros(len(part), np.int64), {"outcomes.returns": rows})
        operator.process(batch, [])
        store.write(operator.changes())
        out = batch.streams["mature.returns"]
        assert isinstance(out, MatureRows)
        found += [Taken(out.outcomes.settled(n).id, seen) for n, seen in enumerate(out.seen.tolist())]
        done += len(part)
        count += 1
        if restart and count % restart == 0:
            operator.clear()
            operator.load(store.rows(b""))
    left = [int.from_bytes(key, "big") for key, _ in store.rows(b"")]
    let = {one.id for one in found}
    assert left == [n for n, one in enumerate(outcomes) if one.id not in let], "rows are what still waits"
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_outcomes_come_in_the_order_of_maturity_and_then_of_publication(seed: int) -> None:
    outcomes = published(seed)
    end = max(one.watermark for one in outcomes)
    ordered = sorted(range(len(outcomes)), key=lambda n: (outcomes[n].matures, n))
    assert [t.id for t in mature(outcomes)] == [outcomes[n].id for n in ordered if outcomes[n].matures <= end]


@pytest.mark.parametrize("seed", SEEDS)
def test_no_outcome_comes_before_the_watermark_has_reached_its_maturity(seed: int) -> None:
    outcomes = published(seed)
    by_id = {one.id: one for one in outcomes}
    watermark = datetime.min.replace(tzinfo=T0.tzinfo)
    reached = []
    for one in outcomes:
        watermark = max(watermark, one.watermark)
        reached.append(watermark)
    for taken in mature(outcomes):
        assert by_id[taken.id].matures <= reached[taken.seen - 1]
        earlier = reached[taken.seen - 2] if taken.seen > 1 else None
        known = outcomes.index(by_id[taken.id]) < taken.seen - 1
        waited = known and earlier is not None and by_id[taken.id].matures <= earlier
        assert not waited, "it waits no longer than that"


def test_the_order_is_the_same_whatever_order_the_outcomes_became_known_in() -> None:
    longest = [[t.id for t in mature(published(seed, distinct=True))] for seed in SEEDS]
    longest.sort(key=len)
    for one in longest:
        assert one == longest[-1][: len(one)]
    assert len(longest[-1]) > 30


@pytest.mark.parametrize("seed", SEEDS)
def test_batches_cut_anywhere_and_restarts_change_nothing(seed: int) -> None:
    outcomes = published(seed)
    expected = mature(outcomes)
    assert mature(outcomes, cut=seed) == expected
    assert mature(outcomes, cut=seed, restart=1) == expected
    assert mature(outcomes, cut=seed + 1, restart=3) == expected
