"""`headrace profile`: where the time goes, told of a program's own events, and nothing written."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher, Row

import headrace as hr
from headrace import plan
from headrace.errors import ProfileError
from headrace.profiling import Meter, Profile, profile


class Sale(hr.Event, topic="profiled", key="shop", time="at"):
    shop: str
    amount: float
    at: datetime


class Takings(hr.Features, of=Sale, by="shop"):
    today = hr.sum(hr.col.amount, "1d")


app = hr.App("profiled", features=[Takings], partitions=2)

SALES = 6_000
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def sale(n: int) -> Row:
    """Every fourth is written with an escape, which kernels leave to msgspec."""
    shop = f"s{n % 50}"
    value = msgspec.json.encode({"shop": shop, "amount": n / 8, "at": T0 + timedelta(seconds=n)})
    odd = value.replace(b'"s', b'"\\u0073') if n % 4 == 0 else value
    return Row(shop.encode(), odd)


def done(broker: Address, work: Any) -> Any:
    async def main() -> Any:
        log = KafkaLog(broker)
        try:
            return await work(log)
        finally:
            await log.close()

    return asyncio.run(main())


@pytest.fixture(scope="module")
def sold(broker: Address) -> Address:
    async def publish() -> None:
        await ensure_topics(broker, app.topics())
        publisher = Publisher(broker)
        await publisher.start()
        await publisher.send("profiled", [sale(n) for n in range(SALES)])
        await publisher.close()

    asyncio.run(publish())
    return broker


def test_every_step_of_a_stage_is_told_with_its_share_and_nothing_is_written(sold: Address, tmp_path: Path) -> None:
    [made] = done(sold, lambda log: profile(app, log, tmp_path, SALES))
    assert made.stage == "profiled"
    assert 0 < made.events < SALES, "the first are not counted"
    steps = list(made.spent)
    assert steps == [
        "read, and the cycle itself", "decode profiled", "merge inputs", "Takings", "state rows of Takings",
        "lay out features.Takings", "lay out the changelog", "store rows in RocksDB", "RocksDB, in the background",
    ]  # fmt: skip
    assert all(made.spent[step] > 0 for step in steps[:-1])
    assert re.match(r"2\d\.\d% a row at a time: escapes", made.notes["decode profiled"])
    *rows, whole = made.rows()
    assert sum(float(row["share"].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.5)
    assert whole["ns/event"] == pytest.approx(sum(row["ns/event"] for row in rows), abs=len(rows))
    written = [Partition(t, n) for t in ("features.Takings", "profiled.profiled.changelog") for n in range(2)]
    assert set(done(sold, lambda log: log.ends(written)).values()) == {0}
    assert not any(done(sold, lambda log: log.committed(plan.stages(app)[0].group, [Partition("profiled", 0)])))


def test_no_more_rows_are_taken_than_asked_for(sold: Address, tmp_path: Path) -> None:
    [made] = done(sold, lambda log: profile(app, log, tmp_path, 2_000))
    assert made.events <= 2_000


def test_where_there_is_nothing_to_measure_a_sentence_says_so(broker: Address, tmp_path: Path) -> None:
    class Rare(hr.Event, topic="profiled-rare", key="shop", time="at"):
        shop: str
        at: datetime

    class Seen(hr.Features, of=Rare, by="shop"):
        times = hr.count()

    rare = hr.App("profiled-rare", features=[Seen])
    asyncio.run(ensure_topics(broker, rare.topics()))
    with pytest.raises(ProfileError, match="there is too little on profiled-rare to measure: publish"):
        done(broker, lambda log: profile(rare, log, tmp_path))


def test_a_step_within_a_step_counts_once() -> None:
    meter = Meter()

    def work() -> int:
        return sum(range(200_000))

    with meter.step("outer"):
        work()
        with meter.step("inner"):
            work(), work(), work()
    assert meter.spent["inner"] > 1.5 * meter.spent["outer"] > 0


def test_a_profile_tells_events_a_second_on_one_core() -> None:
    made = Profile("orders", events=1_000, spent={"decode orders": 3_000_000, "Customer": 1_000_000})
    assert [(row["step"], row["ns/event"], row["share"]) for row in made.rows()] == [
        ("decode orders", 3_000, "75.0%"),
        ("Customer", 1_000, "25.0%"),
        ("all", 4_000, "100%"),
    ]
    assert made.rows()[-1]["note"] == "250,000 events/s on one core"
