"""Real workers of the bank on a broker, payments published meanwhile, and the books that must balance in the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.kafka import KafkaLog
from headrace.streams.log import Partition
from headrace.streams.publisher import Publisher, Row
from headrace.streams.workers import WORKERS, TaskState, WorkerStatus

from headrace.program import load
from headrace.state import records
from tests.scene import ROOT, eventually

PROGRAM = ROOT / "tests" / "headrace" / "bank.py"
PARTITIONS = 8
ACCOUNTS = 40


class Bank:
    """Workers by number, each a process."""

    def __init__(self, address: Address, folder: Path, standby: int, program: Path) -> None:
        self.program = program
        self.address = address
        self.folder = folder
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.sent = 0
        self._environment = {
            **os.environ,
            "BANK_PARTITIONS": str(PARTITIONS),
            "BANK_STANDBY": str(standby),
            "PYTHONPATH": str(ROOT),
        }
        self._over = threading.Event()

    def start(self, number: int) -> None:
        command = [sys.executable, "-m", "headrace.worker", str(self.program), "--broker", self.address.bootstrap]
        with self.log(number).open("ab") as log:
            self.processes[number] = subprocess.Popen(
                [*command, "--data", str(self.folder / "data")],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def log(self, number: int) -> Path:
        return self.folder / f"worker-{number}.log"

    def send(self, number: int, sign: signal.Signals) -> None:
        self.processes[number].send_signal(sign)

    def end(self, number: int, sign: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        self.send(number, sign)
        return self.processes.pop(number).wait(30)

    @contextmanager
    def payments(self, pause: float = 0.01) -> Iterator[None]:
        """Payments are published all the while."""

        async def publish() -> None:
            publisher = Publisher(self.address)
            await publisher.start()
            while not self._over.is_set():
                rows = []
                for n in range(self.sent, self.sent + 10):
                    who = f"account {n % ACCOUNTS}"
                    at = f"2024-01-{n // 86400 + 1:02}T{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}Z"
                    rows.append(Row(who.encode(), json.dumps({"who": who, "amount": n, "at": at}).encode()))
                await publisher.send("payments", rows)
                self.sent += len(rows)
                await asyncio.sleep(pause)
            await publisher.close()

        self._over.clear()
        asyncio.run(ensure_topics(self.address, load(PROGRAM).topics()))
        thread = threading.Thread(target=lambda: asyncio.run(publish()))
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def balance(self) -> int:
        """How many payments have their output. Raises AssertionError where one was lost, doubled or taken out of order.

        The oracle knows nothing but the payments: of each account the number and the sum after each of them.
        """
        return asyncio.run(self._balance())

    async def _balance(self) -> int:
        log = KafkaLog(self.address)
        seen: dict[str, list[tuple[int, int]]] = defaultdict(list)
        try:
            for number in range(PARTITIONS):
                async for fetched in records(log, Partition("features.Account", number)):
                    for key, value in zip(fetched.keys, fetched.values, strict=True):
                        told = msgspec.json.decode(value or b"")
                        seen[(key or b"").decode()].append((told["payments"], told["paid"]))
        finally:
            await log.close()
        for account in range(ACCOUNTS):
            amounts = range(account, self.sent, ACCOUNTS)
            got = seen[f"account {account}"]
            expected, total = [], 0
            for count, amount in enumerate(amounts, start=1):
                total += amount
                expected.append((count, total))
            assert got == expected[: len(got)], f"account {account}: {got[:3]}... is not {expected[:3]}..."
        return sum(len(rows) for rows in seen.values())

    def workers(self) -> dict[str, WorkerStatus]:
        """What the topic `workers` tells."""

        async def read() -> dict[str, WorkerStatus]:
            log = KafkaLog(self.address)
            found: dict[str, WorkerStatus] = {}
            try:
                async for fetched in records(log, Partition(WORKERS, 0)):
                    for key, value in zip(fetched.keys, fetched.values, strict=True):
                        name = (key or b"").decode()
                        found.pop(name, None)
                        if value is not None:
                            found[name] = msgspec.json.decode(value, type=WorkerStatus)
            finally:
                await log.close()
            return found

        return asyncio.run(read())

    def status(self, number: int) -> WorkerStatus | None:
        pid = self.processes[number].pid
        return next((w for w in self.workers().values() if w.pid == pid), None)

    def running(self, number: int, state: TaskState = "running") -> int:
        """How many tasks a worker says it runs, each of them taking rows; or how many are in another state there."""
        told = self.status(number)
        return sum(t.state == state for t in told.tasks) if told else 0

    def shared(self, *shares: int, within: float = 60.0) -> None:
        """Wait until the living workers, in the order of their numbers, run so many tasks each (in any order)."""
        alive = sorted(self.processes)
        eventually(lambda: sorted(self.running(n) for n in alive) == sorted(shares), within)


@contextmanager
def bank(address: Address, folder: Path, standby: int = 0, program: Path = PROGRAM) -> Iterator[Bank]:
    made = Bank(address, folder, standby, program)
    try:
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
            process.wait()

