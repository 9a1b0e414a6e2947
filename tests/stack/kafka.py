"""Real Apache Kafka as processes on this machine: one node, or a cluster of them. KRaft, on loopback.

`make stack` runs it until Ctrl-C; tests take `kafka(folder)`. The jars come from Maven, once a machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from headrace.streams.address import Address
from headrace.streams.admin import answers

from tests.scene import accepts, free_port
from tests.stack import maven

VERSION = "4.1.1"
MAIN_PORT = 19092
"""Where `make stack` serves: not Kafka's usual port, which the local broker takes."""

READY_WITHIN = 90.0
"""Seconds. Five on a quiet machine; after kill -9 the log is read first, and here two cores do all."""
STOP_WITHIN = 60.0

QUICK = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""What makes a Java process start fast and take little, at the price of its speed later on."""

SETTINGS = {
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "CLIENT",
    "process.roles": "broker,controller",
    # Old event times would be deleted within minutes by the default of a week.
    "log.retention.ms": "-1",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    # A killed node is taken back only once its session is over: nine seconds are the default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # Fifty partitions each are the default: more than a test needs, and each is files.
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.num.partitions": "8",
}
"""What every node is told; the compose file tells its nodes the same."""

JARS = (
    f"org.apache.kafka:kafka_2.13:{VERSION}",
    f"org.apache.kafka:kafka-tools:{VERSION}",
    "org.apache.logging.log4j:log4j-core:2.25.1",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.1",
)

_LOGGING = """Configuration:
  Appenders:
    Console: {name: out, PatternLayout: {pattern: "%d %p %c{1}: %m%n"}}
  Loggers:
    Root: {level: WARN, AppenderRef: {ref: out}}
    Logger: [{name: kafka, level: INFO}, {name: org.apache.kafka, level: WARN}]
"""


def provision() -> Path:
    """The folder of Kafka's jars; they are fetched where they are missing. Needs java and mvn on the PATH."""
    told = f"Apache Kafka {VERSION} (once on this machine; about 20 seconds)"
    return maven.jars(f"kafka-{VERSION}", JARS, told)


class Cluster:
    """Nodes 1 to n, each a broker and a controller in one process.

    settings: beside SETTINGS, for every node; `{client}` and `{controller}` stand for the node's ports
    java:     options of Java: for tests, those that start fast and take little
    """

    def __init__(
        self,
        folder: Path,
        nodes: int = 1,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        java: Sequence[str] = ("-Xmx512m", *QUICK),
    ) -> None:
        self._folder = folder
        self._jars = provision()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ports = {n: port + n - 1 if port else free_port() for n in range(1, nodes + 1)}
        self._controllers = {n: free_port() for n in self._ports}
        self._id = urlsafe_b64encode(os.urandom(16)).rstrip(b"=").decode().replace("-", "x")
        self._settings = dict(settings or {})
        self._java = list(java)

    @property
    def nodes(self) -> list[int]:
        return list(self._ports)

    @property
    def address(self) -> Address:
        """Of the first node."""
        return self.address_of(1)

    def address_of(self, node: int) -> Address:
        return Address("127.0.0.1", self._ports[node])

    @property
    def bootstrap(self) -> str:
        """Every node, as Kafka clients take it."""
        return ",".join(f"127.0.0.1:{port}" for port in self._ports.values())

    @property
    def jars(self) -> str:
        """The class path."""
        return f"{self._jars}/*"

    def log(self, node: int = 1) -> str:
        """The end of what a node has said."""
        return (self._folder / f"node-{node}.log").read_text(errors="replace")[-5000:]

    def pid(self, node: int = 1) -> int:
        return self._processes[node].pid

    def start(self, *nodes: int, wait: bool = True) -> None:
        """Start nodes (left out: all of them), on the data they have, and wait until each serves."""
        chosen = nodes or tuple(self._ports)
        self._folder.mkdir(parents=True, exist_ok=True)
        for node in chosen:
            self._start(node)
        for node in chosen if wait else ():
            self.wait(node)

    def _start(self, node: int) -> None:
        config = self._folder / f"node-{node}.properties"
        with (self._folder / f"node-{node}.log").open("ab") as log:
            if not config.exists():
                config.write_text("".join(f"{k}={v}\n" for k, v in self._properties(node).items()))
                (self._folder / "log4j2.yaml").write_text(_LOGGING)
                tool = ["kafka.tools.StorageTool", "format", "-t", self._id, "-c", str(config)]
                formatted = subprocess.run(self.java(*tool), stdout=log, stderr=log, check=False)
                if formatted.returncode:
                    raise RuntimeError(f"Kafka's folder could not be formatted:\n{self.log(node)}")
            command = self.java("kafka.Kafka", str(config), options=self._java)
            self._processes[node] = subprocess.Popen(command, stdout=log, stderr=log)

    def java(self, *command: str, options: Sequence[str] = ("-Xmx128m", *QUICK)) -> list[str]:
        """A command line that runs a class of the distribution."""
        log = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.yaml'}"
        return ["java", *options, log, "-cp", self.jars, *command]

    def _properties(self, node: int) -> dict[str, str]:
        client, controller = self._ports[node], self._controllers[node]
        copies = str(len(self._ports))
        insync = "2" if len(self._ports) > 2 else "1"
        found = {
            **SETTINGS,
            "node.id": str(node),
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{p}" for n, p in self._controllers.items()),
            "listeners": f"CLIENT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"CLIENT://127.0.0.1:{client}",
            "log.dirs": str(self._folder / f"data-{node}"),
            "default.replication.factor": copies,
            "min.insync.replicas": insync,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": insync,
        }
        ports = {"{client}": str(client), "{controller}": str(controller)}
        for name, value in self._settings.items():
            for place, port in ports.items():
                value = value.replace(place, port)
            found[name] = value
        return found

    def wait(self, node: int = 1) -> None:
        """Return once the node answers."""
        until = time.monotonic() + READY_WITHIN
        process = self._processes[node]
        while not self._serves(node):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"node {node} of Kafka does not serve:\n{self.log(node)}")
            time.sleep(0.2)

    def _serves(self, node: int) -> bool:
        if not accepts(self.address_of(node)):
            return False
        if "CLIENT:PLAINTEXT" not in self._properties(node)["listener.security.protocol.map"]:
            return True
        return asyncio.run(answers(self.address_of(node)))

    def kill(self, node: int = 1) -> None:
        """SIGKILL."""
        self._processes[node].kill()
        self._processes.pop(node).wait()

    def stop(self, node: int = 1) -> None:
        """SIGTERM, and wait for the end; a node without its quorum does not end by that, and is killed."""
        process = self._processes[node]
        process.terminate()
        try:
            process.wait(STOP_WITHIN if len(self._processes) > len(self._ports) // 2 else 1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        del self._processes[node]

    def pause(self, node: int = 1) -> None:
        """SIGSTOP: to the others and to clients it looks cut off."""
        self._processes[node].send_signal(signal.SIGSTOP)

    def resume(self, node: int = 1) -> None:
        self._processes[node].send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End what runs, at once: nobody needs the data any more."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()


@contextlib.contextmanager
def kafka(folder: Path, nodes: int = 1, **settings: str) -> Iterator[Cluster]:
    """A cluster that serves; settings are Kafka's, with underscores for dots."""
    cluster = Cluster(folder, nodes, {name.replace("_", "."): value for name, value in settings.items()})
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("make stack", description="Run Apache Kafka here until Ctrl-C.")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--port", type=int, default=MAIN_PORT)
    chosen = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="headrace-kafka-"))
    cluster = Cluster(folder, chosen.nodes, port=chosen.port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        cluster.start()
        print(f"Apache Kafka {VERSION} serves at kafka://{cluster.bootstrap}; its data goes with Ctrl-C", flush=True)
        signal.pause()
    finally:
        cluster.close()
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
