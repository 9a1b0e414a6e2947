"""What fails around a worker: it says so in a sentence and ends, or waits and goes on; nothing is lost or doubled.

Each on the local broker and, in `make test-stack`, on Apache Kafka.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest.mock import ANY

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.errors import LogUnavailable
from headrace.streams.publisher import Publisher, Row
from headrace.streams.topics import Topic

from headrace.plan import COMPACTED
from headrace.program import load
from headrace.supervisor import FINAL
from tests import secured
from tests.headrace import refusing
from tests.headrace.test_refused import read
from tests.scene import ROOT, accepts, broker_process, eventually, free_port, write
from tests.stack.kafka import Cluster, kafka
from tests.streams.broker.clients import Clients

PROGRAM = ROOT / "tests" / "headrace" / "refusing.py"
OUT = "features.Lines"
ENDS_WITHIN = 40.0


def line(who: str = "anna") -> Row:
    return Row(who.encode(), json.dumps({"who": who, "n": 1, "x": 0.5, "at": "2009-12-01T07:45:00Z"}).encode())


class Scene:
    """A broker with a program's topics, and workers on one folder."""

    def __init__(self, address: Address, folder: Path, topics: Iterable[Topic] | None = None) -> None:
        self.address, self.folder = address, folder
        asyncio.run(ensure_topics(address, refusing.app.topics() if topics is None else topics))

    @contextlib.contextmanager
    def worker(
        self, prepare: Callable[[], None] | None = None, program: Path = PROGRAM
    ) -> Iterator[subprocess.Popen[bytes]]:
        where = ["--broker", str(self.address), "--data", str(self.folder / "data")]
        command = [sys.executable, "-m", "headrace.worker", str(program), *where]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=prepare
        )
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=60)

    def totals(self, who: str = "anna") -> list[int]:
        found = [json.loads(r.value or b"") for r in asyncio.run(read(self.address, OUT))]
        return [value["total"] for value in found if value["who"] == who]

    def admin(self, ask: Callable[[AIOKafkaAdminClient], object]) -> None:
        async def main() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.address.bootstrap)
            await admin.start()
            try:
                await ask(admin)  # type: ignore[misc]
            finally:
                await admin.close()

        asyncio.run(main())


class Local:
    """The local broker as a process, in the words of a cluster of Kafka's."""

    def __init__(self, folder: Path) -> None:
        self.address = Address("127.0.0.1", free_port())
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        where = ["--data", str(self._folder), "--port", str(self.address.port)]
        self._process = subprocess.Popen([sys.executable, "-m", "headrace.streams.broker", *where], cwd=ROOT)
        eventually(lambda: accepts(self.address))

    def _send(self, sign: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(sign)

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()


SLOW = pytest.mark.stack
"""Another kind of what runs in `make test`."""
BOTH = ["local", pytest.param("kafka", marks=SLOW)]


@pytest.fixture(scope="module")
def kafka_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An Apache Kafka of these tests' own: they delete its topics."""
    with kafka(tmp_path_factory.mktemp("kafka")) as cluster:
        yield cluster


@pytest.fixture(params=BOTH)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Address]:
    """Of an empty broker, the local one and Kafka in turn."""
    if request.param == "local":
        with broker_process(tmp_path / "broker") as found:
            yield found
        return
    cluster: Cluster = request.getfixturevalue("kafka_here")
    asyncio.run(_clear(cluster.address))
    yield cluster.address


async def _clear(address: Address) -> None:
    async with Clients(address.bootstrap) as clients:
        await clients.clear()


@pytest.fixture
def scene(address: Address, tmp_path: Path) -> Scene:
    return Scene(address, tmp_path)


def told(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """(status, last line) of a worker that ends by itself."""
    _, said = process.communicate(timeout=ENDS_WITHIN)
    return process.returncode, said.decode().strip().splitlines()[-1]


@pytest.mark.parametrize(
    "topic", ["lines", pytest.param(OUT, marks=SLOW), pytest.param("refusing.lines.changelog", marks=SLOW)]
)
def test_a_topic_deleted_under_the_worker_ends_it_with_a_sentence(scene: Scene, topic: str) -> None:
    write(scene.address, "lines", [line()])
    with scene.worker() as worker:
        eventually(lambda: scene.totals() == [1])
        scene.admin(lambda admin: admin.delete_topics([topic]))
        status, said = told(worker)
    assert status == FINAL, "it is not started again"
    assert said.startswith(f"worker stopped: topic {topic} was deleted while the program ran: its records are lost.")
    there: list[str] = []
    scene.admin(lambda admin: _names(admin, there))
    assert topic not in there, "it was not made again in silence"


async def _names(admin: AIOKafkaAdminClient, found: list[str]) -> None:
    found += await admin.list_topics()


def test_a_source_made_again_empty_ends_the_worker_that_took_more_of_it(scene: Scene) -> None:
    write(scene.address, "lines", [line(), line()])
    with scene.worker():
        eventually(lambda: scene.totals() == [1, 2])
    scene.admin(lambda admin: admin.delete_topics(["lines"]))
    asyncio.run(ensure_topics(scene.address, refusing.app.topics()))
    write(scene.address, "lines", [line()])
    with scene.worker() as worker:
        status, said = told(worker)
    assert status == FINAL
    assert "lines, partition 0, ends at offset 1, but the state of task lines-0 reflects it up to 2" in said
    assert scene.totals() == [1, 2]


def test_partitions_added_under_the_worker_end_it_with_a_sentence(scene: Scene) -> None:
    write(scene.address, "lines", [line()])
    with scene.worker() as worker:
        eventually(lambda: scene.totals() == [1])
        scene.admin(lambda admin: admin.create_partitions({"lines": NewPartitions(2)}))
        status, said = told(worker)
    assert status == FINAL
    assert said.startswith("worker stopped: topic lines has 2 partitions in the log now and 1 in the program: ")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("delete.retention.ms", "3600000", "a disk that was away for longer would keep rows that are deleted"),
        pytest.param("cleanup.policy", "delete", "rows of state would be deleted by their age", marks=SLOW),
    ],
)
def test_a_changelog_that_lets_go_what_state_rests_on_ends_the_worker_and_is_refused_until_it_is_set_right(
    scene: Scene, name: str, value: str, why: str
) -> None:
    def configure(to: str) -> Callable[[AIOKafkaAdminClient], object]:
        what = {**COMPACTED, name: to}  # this way of altering forgets what it does not name
        topic = ConfigResource(ConfigResourceType.TOPIC, "refusing.lines.changelog", configs=what)
        return lambda admin: admin.alter_configs([topic])

    write(scene.address, "lines", [line()])
    with scene.worker() as worker:
        eventually(lambda: scene.totals() == [1])
        scene.admin(configure(value))
        assert told(worker) == (FINAL, ANY)
    write(scene.address, "lines", [line()])
    with scene.worker() as worker:
        status, said = told(worker)
    assert status == FINAL
    differs = f"{name}={value} in the log and {COMPACTED[name]} in the program"
    assert said.startswith(f"worker stopped: topic refusing.lines.changelog has {differs}: {why}. Set")
    scene.admin(configure(COMPACTED[name]))
    with scene.worker():
        eventually(lambda: scene.totals() == [1, 2])


def test_a_record_too_large_for_its_topic_is_named_and_goes_on_once_it_has_room(scene: Scene) -> None:
    def limit(size: int) -> Callable[[AIOKafkaAdminClient], object]:
        what = {"max.message.bytes": str(size)}
        return lambda admin: admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, "lines.rejected", configs=what)]
        )

    scene.admin(limit(2_000))
    write(scene.address, "lines", [line(), Row(b"anna", b"x" * 5_000), line()])
    with scene.worker() as worker:
        status, said = told(worker)
    assert status == FINAL
    assert "a record of 5,000 bytes, key b'anna', is larger than lines.rejected takes: raise max.message.bytes" in said
    assert scene.totals() == []
    scene.admin(limit(1_000_000))
    with scene.worker():
        eventually(lambda: scene.totals() == [1, 2])
    assert len(asyncio.run(read(scene.address, "lines.rejected"))) == 1


SOON = """
from headrace.streams import rocks
from tests.headrace.refusing import app

rocks.KEPT_EVERY = 1.0
"""


def test_a_full_disk_ends_the_worker_with_a_sentence_and_it_goes_on_once_there_is_room(
    scene: Scene, tmp_path: Path
) -> None:
    def little_room() -> None:
        # No file may grow beyond this: to who writes, a disk that is full. Python ignores the signal that comes along.
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    # What cannot be made smaller: a file's rows are compressed.
    keys = [f"{n:03}" + "".join(random.Random(n).choices(string.ascii_letters, k=400)) for n in range(500)]
    write(scene.address, "lines", [line(key) for key in keys])
    soon = tmp_path / "soon.py"
    soon.write_text(SOON)
    with scene.worker(little_room, soon) as worker:
        status, said = told(worker)
    assert status == 1, "it is started again: room may have been made"
    assert "cannot be written (" in said
    assert "see that the disk has room" in said
    write(scene.address, "lines", [line(key) for key in keys])
    with scene.worker():
        eventually(lambda: scene.totals(keys[-1]) == [1, 2])
    found = [json.loads(r.value or b"") for r in asyncio.run(read(scene.address, OUT))]
    assert sorted((v["who"], v["total"]) for v in found) == [(key, n) for key in keys for n in (1, 2)]


CREDENTIALS = "the broker at {at} refuses user 'ann' (SCRAM-SHA-512): check HEADRACE_USER and HEADRACE_PASSWORD"


@pytest.mark.parametrize("kind", BOTH)
def test_wrong_credentials_end_the_worker_with_a_sentence(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secure = secured.local if kind == "local" else secured.apache
    with secure(tmp_path) as broker:
        broker.tell(monkeypatch)
        scene = Scene(broker.secure, tmp_path)
        broker.tell(monkeypatch, password="wrong")
        with scene.worker() as worker:
            status, said = told(worker)
    assert status == FINAL
    assert said.startswith(f"worker stopped: {CREDENTIALS.format(at=broker.secure.bootstrap)}")


CHANGING = """
import headrace as hr
from datetime import datetime

class Line(hr.Event, topic="lines", key="who", time="at"):
    who: str
    n: int
    x: float
    at: datetime

class Lines(hr.Features, of=Line, by="who"):
    total = hr.sum(hr.col.n, "{window}")
    {more}

class PerHour(hr.Features, of=Line, by="who", window=hr.tumbling("{pane}")):
    total = hr.sum(hr.col.n)

app = hr.App("changing", features=[Lines, PerHour], partitions={partitions})
"""
FIRST = {"window": "1h", "more": "", "pane": "1h", "partitions": "1"}


def changing(folder: Path, **changes: str) -> Path:
    """The program, with some of it changed."""
    path = folder / "changing.py"
    path.write_text(CHANGING.format(**FIRST | changes))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"window": "2h"},
        pytest.param({"pane": "2h"}, marks=SLOW),
        pytest.param({"more": "lines = hr.count('1h')"}, marks=SLOW),
    ],
    ids=["a feature's window", "a window set's size", "a feature added"],
)
def test_a_changed_program_is_refused_with_a_sentence_and_goes_on_once_it_is_taken_back(
    address: Address, tmp_path: Path, change: dict[str, str]
) -> None:
    scene = Scene(address, tmp_path, load(changing(tmp_path)).topics())
    write(address, "lines", [line()])
    with scene.worker(program=changing(tmp_path)):
        eventually(lambda: scene.totals() == [1])
    write(address, "lines", [line()])
    for _ in range(2):  # it is no better when it is started again
        with scene.worker(program=changing(tmp_path, **change)) as worker:
            status, said = told(worker)
        assert status == FINAL
        assert said == (
            "worker stopped: the state of lines was made by another version of the program. To go on, take back what "
            "was changed; to begin anew from the events on the log, run `headrace reset PROGRAM`"
        )
    assert scene.totals() == [1]
    with scene.worker(program=changing(tmp_path)):
        eventually(lambda: scene.totals() == [1, 2])


@pytest.mark.parametrize(
    ("there", "wanted"),
    [pytest.param("1", "2", id="too few"), pytest.param("2", "1", id="too many", marks=SLOW)],
)
def test_another_number_of_partitions_is_refused_before_anything_is_done(
    address: Address, tmp_path: Path, there: str, wanted: str
) -> None:
    scene = Scene(address, tmp_path, load(changing(tmp_path, partitions=there)).topics())
    write(address, "lines", [line("dora")])  # of both numbers she is in partition 0
    with scene.worker(program=changing(tmp_path, partitions=wanted)) as worker:
        status, said = told(worker)
    assert status == FINAL
    assert said == (
        f"worker stopped: topic lines has {there} partitions in the log and {wanted} in the program: set "
        f"partitions={there} in the program, or start with an empty log"
    )
    with scene.worker(program=changing(tmp_path, partitions=there)):
        eventually(lambda: scene.totals("dora") == [1])


def _read(scene: Scene) -> list[int]:
    """The totals; none while the log is not back yet."""
    try:
        return scene.totals()
    except (LogUnavailable, KafkaError):
        return []


def _lists_topics(address: Address) -> bool:
    """Whether the log is so far back that a publisher, which asks for its topics first, may write."""

    async def main() -> bool:
        publisher = Publisher(address)
        try:
            await publisher.start()
            return "lines" in await publisher.topics()
        except LogUnavailable:
            return False
        finally:
            await publisher.close()

    return asyncio.run(main())


@SLOW
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["stopped", "killed"])
@pytest.mark.parametrize("kind", ["local", "kafka"])
def test_a_log_that_is_away_for_a_minute_is_waited_for(tmp_path: Path, kind: str, how: str) -> None:
    with contextlib.ExitStack() as life:
        log: Local | Cluster
        if kind == "kafka":
            log = life.enter_context(kafka(tmp_path))
        else:
            log = Local(tmp_path / "broker")
            log.start()
            life.callback(log.kill)
        scene = Scene(log.address, tmp_path)
        write(log.address, "lines", [line()])
        with scene.worker() as worker:
            eventually(lambda: scene.totals() == [1])
            if how == "stopped":
                log.pause()
                time.sleep(60)
                log.resume()
            else:
                log.kill()
                time.sleep(60)
                log.start()
            eventually(lambda: _read(scene) == [1], 60)
            eventually(lambda: _lists_topics(scene.address))
            write(log.address, "lines", [line()])
            eventually(lambda: scene.totals() == [1, 2])
            assert worker.poll() is None, "the worker waited"
