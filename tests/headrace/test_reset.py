"""`headrace reset`: what goes, what stays, what stands in its way, and that the next start computes the same again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.errors import LogUnavailable, ProgramChanged
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher, encode
from headrace.streams.runner import Runner
from headrace.streams.store import MemoryStore, Store
from headrace.streams.task import MARK

from headrace import plan, reset, running
from headrace.errors import NoBroker, ResetError
from headrace.reset import Doom, survey
from headrace.running import Running
from headrace.state import records
from headrace.verify import verify
from headrace.worker import SystemClock
from tests import crew
from tests.headrace import returning
from tests.headrace.returning import ORDERS, events
from tests.headrace.test_command import headrace
from tests.scene import broker_process
from tests.stack.kafka import kafka

DERIVED = ("features.Customer", "predictions.returns", "orders.rejected", "features.Hourly")
PROGRAM = Path(returning.__file__)
Held = dict[str, list[tuple[object, ...]]]
app = returning.app


async def publish(address: Address) -> None:
    await ensure_topics(address, app.topics())
    publisher = Publisher(address)
    await publisher.start()
    for topic in ("orders", "returns"):
        await publisher.send(topic, [encode(e, None, "customer") for e in events(topic)])
    await publisher.close()


async def work(address: Address, stores: dict[tuple[str, int], Store] | None = None) -> None:
    """Run every task of the program until there is nothing left to do."""
    log = KafkaLog(address)
    runners = []
    for stage in plan.stages(app):
        for number in range(stage.partitions):
            store = (stores or {}).get((stage.name, number)) or MemoryStore()
            if stores is not None:
                stores[stage.name, number] = store
            task, follows = stage.build(number, store)
            runners.append(Runner(task, log, SystemClock(), stage.group, follows, idle_after=0.02))

    async def end(runner: Runner) -> None:
        quiet = 0
        while quiet < 4:
            quiet = 0 if await runner.step() else quiet + 1

    try:
        await asyncio.gather(*(runner.start() for runner in runners))
        # Upstream first; what is learnt comes once all orders are taken.
        await asyncio.gather(*(end(runner) for runner in runners[:-1]))
        await end(runners[-1])
    finally:
        for runner in runners:
            await runner.close()
        await log.close()


async def held(address: Address, topics: Sequence[str] = DERIVED) -> Held:
    """Every record of these topics, without what depends on the time of the day."""
    log = KafkaLog(address)
    found: Held = {}
    partitions = {t.name: t.partitions for t in app.topics()}
    for topic in topics:
        rows = found[topic] = []
        for number in range(partitions[topic]):
            async for fetched in records(log, Partition(topic, number)):
                for key, value in zip(fetched.keys, fetched.values, strict=True):
                    told = value
                    if topic.startswith("predictions") and value is not None:
                        said = json.loads(value)
                        told = json.dumps({n: said[n] for n in ("id", "features")}).encode()
                    rows.append((number, key, told))
    await log.close()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Held, Held]:
    """The folder of a stack that ran the program to its end, and is down; what its sources and derived topics held."""
    folder = tmp_path_factory.mktemp("ran") / "shop"
    folder.mkdir()
    with broker_process(folder / "broker") as address:
        asyncio.run(publish(address))
        asyncio.run(work(address))
        sources, derived = asyncio.run(held(address, ("orders", "returns"))), asyncio.run(held(address))
    (folder / "state" / "orders-0").mkdir(parents=True)
    (folder / "workers" / "0" / "state").mkdir(parents=True)
    return folder, sources, derived


@pytest.fixture
def ran(whole: tuple[Path, Held, Held]) -> Path:
    return whole[0]


@pytest.fixture
def folder(ran: Path, tmp_path: Path) -> Path:
    """A copy of it, to be destroyed."""
    shutil.copytree(ran, tmp_path / "shop")
    return tmp_path / "shop"


@contextmanager
def up(folder: Path) -> Iterator[Address]:
    with broker_process(folder / "broker") as address:
        yield address


def test_the_next_start_computes_the_same_again_from_the_events_that_stayed(
    folder: Path, whole: tuple[Path, Held, Held]
) -> None:
    _, sources, before = whole
    assert len(before["predictions.returns"]) == ORDERS * 9 // 10
    done = headrace("reset", str(PROGRAM), "--data", str(folder), "--yes")
    told = done.stderr.decode()
    assert done.returncode == 0, told
    assert re.search(r"topic +predictions.returns \(at most 2\d\d records\), made again empty", told)
    assert "versions   of model returns, on registry" in told
    assert "state      shop.orders.changelog, 4 partitions" in told
    assert f"state      {folder}/workers" in told
    assert "positions  of group shop.orders" in told
    assert "events     orders (240 records)" in told
    assert "shop begins anew at its next start" in told
    assert not (folder / "state").exists()
    assert not (folder / "workers").exists()
    with up(folder) as address:
        assert asyncio.run(held(address, ("orders", "returns"))) == sources
        assert not any(asyncio.run(held(address)).values())
        asyncio.run(work(address))
        assert asyncio.run(held(address)) == before
        assert different(address) == []


def test_the_state_of_a_stack_that_is_down_is_exported_to_a_file(ran: Path, tmp_path: Path) -> None:
    out = tmp_path / "customers.ndjson"
    asked = ("--set", "Customer", "--out", str(out))
    done = headrace("export-state", str(PROGRAM), "--data", str(ran), *asked)
    assert done.returncode == 0, done.stderr.decode()
    rows = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert done.stderr.decode() == f"{len(rows)} rows of shop are in {out}\n"
    entities = {row["entity"]["customer"] for row in rows if row["kind"] == "Customer"}
    assert entities == {f"c{n}" for n in range(11)}
    assert sum(row["features"]["lines"] for row in rows if row["kind"] == "Customer") == ORDERS * 9 // 10
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def different(address: Address) -> list[str]:
    async def main() -> list[str]:
        log = KafkaLog(address)
        try:
            return [example for check in await verify(app, log) for example in check.examples]
        finally:
            await log.close()

    return asyncio.run(main())


async def reset_at(address: Address, folder: Path) -> None:
    await reset.reset(app, address, await survey(app, address, folder))


@pytest.mark.stack
@pytest.mark.timeout(240)
def test_on_kafka_it_is_cut_off_anywhere_and_run_again_and_old_copies_of_the_state_elsewhere_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: dict[tuple[str, int], Store] = {}
    with kafka(tmp_path) as cluster:
        address = cluster.address
        asyncio.run(publish(address))
        asyncio.run(work(address, stores))
        before = asyncio.run(held(address))
        assert len(before["predictions.returns"]) == ORDERS * 9 // 10
        for step, times in [("check_idle", 1), ("retire", 0), ("empty", 0), ("empty", 4), ("finish", 0)]:
            with monkeypatch.context() as patched:
                patched.setattr(reset, step, cut_off(getattr(reset, step), times))
                with pytest.raises(KeyboardInterrupt):
                    asyncio.run(reset_at(address, tmp_path))
            with pytest.raises(ProgramChanged, match="did not end: run `headrace reset PROGRAM` again"):
                asyncio.run(work(address))
        asyncio.run(reset_at(address, tmp_path))
        assert all(store.get(MARK) for store in stores.values()), "a worker elsewhere knows nothing of it yet"
        asyncio.run(work(address, stores))
        assert asyncio.run(held(address)) == before
        assert different(address) == []


def cut_off(real: Callable[..., Any], left: int) -> Callable[..., Any]:
    """A step that is interrupted, as by Ctrl-C, at its call after so many."""

    async def step(*arguments: Any) -> Any:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return await real(*arguments)

    return step


def test_a_worker_that_runs_is_in_its_way_and_so_is_a_member_of_a_group(folder: Path) -> None:
    with up(folder) as address:
        alive = crew.worker(1, app="shop")
        crew.tell(address, alive)
        with pytest.raises(ResetError, match=r"workers of shop run \(process 1 on h\): stop them first"):
            asyncio.run(survey(app, address, folder))
        crew.end(address, "w1")
        asyncio.run(survey(app, address, folder))

        async def with_a_member() -> Doom:
            from aiokafka import AIOKafkaConsumer

            async with AIOKafkaConsumer("orders", bootstrap_servers=address.bootstrap, group_id="shop.workers"):
                return await survey(app, address, folder)

        with pytest.raises(ResetError, match=r"group shop.workers has members, so a worker of shop runs somewhere"):
            asyncio.run(with_a_member())


def test_a_processor_that_the_program_no_longer_has_is_emptied_too(folder: Path) -> None:
    gone = [Partition("shop.clicks.changelog", n) for n in range(2)]
    with up(folder) as address:
        from headrace.streams.topics import Topic

        asyncio.run(ensure_topics(address, [Topic("shop.clicks.changelog", "changelog", 2, None, plan.COMPACTED)]))
        doom = asyncio.run(survey(app, address, folder))
        assert set(gone) <= set(doom.changelogs)
        assert "bank.orders.changelog" not in {p.topic for p in doom.changelogs}


def begun(folder: Path | None, broker: str | None = None, yes: bool = False) -> None:
    reset.print_reset(str(PROGRAM), broker, folder, yes, lambda _: None)


def test_what_stands_in_its_way_is_told_and_nothing_is_changed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResetError, match="asks before it destroys anything, and nobody can answer here: give --yes"):
        begun(folder)
    with pytest.raises(LogUnavailable, match=r"no broker answers at kafka://127\.0\.0\.1:1"):
        begun(folder, "127.0.0.1:1", yes=True)
    with pytest.raises(NoBroker, match=r"no local stack of shop has run in .*nowhere.*give --broker \(or HEAD"):
        begun(tmp_path / "nowhere", yes=True)
    running.write(
        Running("shop", os.getpid(), running.birth(os.getpid()) or "", "", "", "http://here", str(folder), ""),
        folder / "stack.json",
    )
    with pytest.raises(ResetError, match=rf"shop runs \(process {os.getpid()}, http://here\): stop it with Ctrl-C"):
        begun(folder, yes=True)
    assert (folder / "state").exists()


def test_no_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    with pytest.raises(ResetError, match="nothing was changed"):
        reset.ask("shop")
