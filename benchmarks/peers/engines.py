"""The engines: how each is had, started, and what it promises. Ours is first; the others are measured by it."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import flink
from benchmarks.peers.children import Children, Failed
from benchmarks.peers.homes import environment, python
from benchmarks.peers.job import PARTITIONS, TOPIC
from tests.stack import kafka, maven

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
JVM_WARM, PYTHON_WARM = 30.0, 6.0
"""Seconds of the worker's processor from the first output that do not count: Java compiles what it runs often, on the
core on which it runs, and is at its speed after some twenty. The broker does the same,
and the first engine that it serves is the fastest."""
HEAP = "-Xmx3g"
COMPILED_WITHIN = 120.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job runs: between which topics of which broker, as which processes."""

    broker: str
    output: str
    children: Children

    @property
    def job(self) -> tuple[str, str, str, str]:
        """What every script takes: broker, folder, input, output."""
        return self.broker, str(self.children.folder / "data"), TOPIC, self.output


Start = Callable[[Place], int]
"""Starts the job; the worker's process."""


@dataclass(frozen=True, slots=True)
class Engine:
    """prepare: has the engine on this machine, and says how to start it. Raises Failed. warm_up: as above."""

    name: str
    version: str
    guarantee: str
    prepare: Callable[[], Start]
    warm_up: float = PYTHON_WARM
    output: str = field(default="")

    @property
    def topic(self) -> str:
        """Where it tells of each event."""
        return self.output or f"told-{self.name.lower().replace(' ', '-')}"


OUR_JOB, OUR_TOPIC = "benchmarks.peers.headrace_job", "features.PerMinute"


def headrace(partitions: int = PARTITIONS) -> Start:
    def start(place: Place) -> int:
        program = ["-m", "headrace.worker", OUR_JOB]
        command = [sys.executable, *program, "--broker", place.broker, "--data", str(place.children.folder / "data")]
        environment = {"PYTHONPATH": str(ROOT), "PARTITIONS": str(partitions)}
        return place.children.start("worker", command, worker=True, environment=environment).pid

    return start


KAFKA_STREAMS = (
    f"org.apache.kafka:kafka-streams:{kafka.VERSION}",
    "com.fasterxml.jackson.core:jackson-databind:2.19.0",
    "org.slf4j:slf4j-simple:1.7.36",
)


def kafka_streams(settings: Mapping[str, str] | None = None) -> Start:
    """settings: beside WindowJob's."""
    have_java()
    told = [f"{name}={value}" for name, value in (settings or {}).items()]

    def start(place: Place) -> int:
        command = [*java_job("WindowJob", place.children), *place.job, *told]
        return place.children.start("worker", command, worker=True).pid

    return start


def have_java() -> None:
    """Raises Failed."""
    for tool in ("javac", "mvn"):
        if shutil.which(tool) is None:
            raise Failed(f"{tool} is not on the PATH: `python -m tests.stack.provision` installs it")


def java_job(name: str, children: Children) -> list[str]:
    """The command of a job of this folder by Kafka Streams, compiled into the children's; what the job takes follows.

    Raises Failed.
    """
    jars = maven.jars(f"kafka-streams-{kafka.VERSION}", KAFKA_STREAMS, f"Kafka Streams {kafka.VERSION}")
    compiling = ["javac", "-cp", f"{jars}/*", "-d", str(children.folder), str(HERE / f"{name}.java")]
    children.run("javac", compiling, COMPILED_WITHIN)
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    return ["java", HEAP, quiet, "-cp", f"{children.folder}:{jars}/*", name]


def flink_sql(settings: Mapping[str, str] | None = None, bounded: str = "latest-offset") -> Start:
    """settings: beside flink's; bounded: where the job ends, as the connector calls it."""
    home = flink.home()

    def start(place: Place) -> int:
        cluster = flink.Flink(home, place.children, settings)
        cluster.start()
        job = (HERE / "window.sql").read_text()
        cluster.submit(job.format(broker=place.broker, input=TOPIC, output=place.output, bounded=bounded))
        return cluster.worker

    return start


def by_python(script: str, package: str, version: str, *beside: str) -> Callable[[], Start]:
    """A script of this folder, in an environment of its own. beside: what else it needs."""

    def prepare() -> Start:
        home = environment(f"{package.partition('[')[0]}-{version}", f"{package}=={version}", *beside)

        def start(place: Place) -> int:
            return place.children.start("worker", [str(python(home)), str(HERE / script), *place.job], worker=True).pid

        return start

    return prepare


BYTEWAX, QUIX, PATHWAY, FAUST = "0.21.1", "3.28.1", "0.33.0", "0.15.3"

ENGINES = (
    Engine(
        "Headrace",
        importlib.metadata.version("headrace"),
        "exactly once; changelog, RocksDB",
        headrace,
        output=OUR_TOPIC,
    ),
    Engine(
        "Kafka Streams",
        kafka.VERSION,
        "exactly once (v2); changelog, RocksDB; commits each second",
        kafka_streams,
        JVM_WARM,
    ),
    Engine(
        "Flink SQL",
        flink.VERSION,
        "exactly once; RocksDB; checkpoints and commits each 5 s",
        flink_sql,
        JVM_WARM,
    ),
    Engine(
        "Pathway",
        PATHWAY,
        "at least once; snapshots of the input each 5 s",
        by_python("pathway_job.py", "pathway", PATHWAY),
    ),
    Engine(
        "Bytewax",
        BYTEWAX,
        "at least once; snapshots of state each 10 s",
        by_python("bytewax_job.py", "bytewax[kafka]", BYTEWAX, "orjson==3.11.4"),
    ),
    Engine(
        "Quix Streams",
        QUIX,
        "exactly once; changelog, RocksDB; commits each 5 s",
        by_python("quix_job.py", "quixstreams", QUIX),
    ),
    Engine(
        "Faust",
        FAUST,
        "at least once; changelog, table in memory",
        by_python("faust_job.py", "faust-streaming", FAUST, "aiokafka==0.14.0", "orjson==3.11.4"),
    ),
)
