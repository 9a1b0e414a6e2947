"""Reports: the topics of the log, and what runs and flows. Tables on a terminal, NDJSON in a pipe."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from headrace.program import load
from headrace.running import Running, current, find_broker
from headrace.streams.address import Address
from headrace.streams.roster import Cell, Crew, Place, Seen, read_crew
from headrace.streams.topics import Processor, Topic, kind_of
from headrace.streams.traffic import Flow, Traffic, describe

BETWEEN = 1.0
"""Seconds between the two samples of a rate."""

SHOWN = {
    "workers": ("worker", "state", "tasks", "standby", "commits", "aborts", "fenced", "restarts", "metrics"),
    "tasks": ("task", "state", "worker", "lag", "rows", "commits", "aborts", "fenced", "watermark"),
}
"""What a terminal has room for; a pipe gets everything."""
COLOURS = {"gone": "red", "unowned": "bold red", "restoring": "cyan", "starting": "dim", "stopping": "dim"}
"""Of the rows whose state is not the usual one."""


def print_topics(broker: str | None) -> None:
    """Every topic of the log. Raises NoBroker and LogUnavailable."""
    address = find_broker(broker)
    topics = _of_stack(address)[1]
    known = {t.name: t for t in topics}
    there = asyncio.run(describe(address))
    listed = [known.get(name) or Topic(name, kind_of(name), partitions) for name, partitions in there.items()]
    flow = asyncio.run(_flow(address, listed, (), samples=1))
    rows: list[dict[str, Cell]] = [
        {
            "topic": t.name,
            "kind": t.kind,
            "partitions": there[t.name],
            "records": t.records,
            "exact": t.exact,
        }
        for t in flow.topics
    ]
    _print("topics", sorted(rows, key=lambda r: str(r["topic"])))


def print_status(broker: str | None) -> None:
    """Processes, topics with rates, processors with lag, workers and their tasks. Raises NoBroker, LogUnavailable."""
    address = find_broker(broker)
    running, topics, processors = _of_stack(address)
    if not topics:
        topics = tuple(Topic(name, kind_of(name), n) for name, n in asyncio.run(describe(address)).items())
    flow = asyncio.run(_flow(address, topics, processors, samples=2))
    crew = asyncio.run(read_crew(address, running.app if running else None, processors))
    if running is not None:
        processes = {"stack": running.pid, **running.processes}
        _print(
            "processes",
            [
                {"process": n, "pid": p, "address": _where(running, n), "metrics": running.metrics.get(n)}
                for n, p in processes.items()
            ],
        )
    _print(
        "topics",
        [
            {"topic": t.name, "kind": t.kind, "records": t.records, "exact": t.exact, "records/s": round(t.rate, 1)}
            for t in flow.topics
            if t.kind != "changelog"
        ],
    )
    if processors:
        _print(
            "processors",
            [
                {"processor": p.name, "lag": p.lag, "records/s": round(p.rate, 1), "group": p.group}
                for p in flow.processors
            ],
        )
    _print_crew(crew)


def _print_crew(crew: Crew) -> None:
    if sys.stdout.isatty():
        _print("workers", [_worker(w) for w in crew.workers])
        _print("tasks", [_task(p) for p in crew.places])
        trouble = crew.trouble()
        if trouble:
            Console(highlight=False, soft_wrap=True).print(trouble, style="bold red", markup=False)
        return
    _print("workers", [w.row() for w in crew.workers])
    _print("tasks", [p.row() for p in crew.places])


def _worker(worker: Seen) -> dict[str, Cell]:
    """A worker as a terminal shows it."""
    row = {**worker.row(), "worker": worker.name}
    if worker.gone:
        row["state"] = f"gone, silent for {worker.silent:,.0f} s"
    return {name: row[name] for name in SHOWN["workers"]}


def _task(place: Place) -> dict[str, Cell]:
    """A task as a terminal shows it."""
    row = {**place.row(), "task": f"{place.processor} {place.partition}"}
    if place.restored is not None and place.task is not None:
        row["state"] = f"restoring {place.restored:.0%} of {place.task.to_restore:,}"
    if place.standbys:
        row["state"] = f"{row['state']}, {place.standbys} standby"
    return {name: row[name] for name in SHOWN["tasks"]}


def _where(running: Running, process: str) -> str:
    return {"stack": running.data, "broker": running.broker, "gateway": running.gateway}.get(process, "")


def _of_stack(address: Address) -> tuple[Running | None, tuple[Topic, ...], tuple[Processor, ...]]:
    """What the running stack tells of the log, if the log is its own."""
    running = current()
    if running is None or running.broker != str(address):
        return None, (), ()
    app = load(running.program)
    return running, app.topics(), app.processors()


async def _flow(address: Address, topics: Sequence[Topic], processors: Sequence[Processor], samples: int) -> Flow:
    traffic = Traffic(address, topics, processors, tail=True)
    await traffic.start()
    try:
        flow = await traffic.flow()
        for _ in range(samples - 1):
            await asyncio.sleep(BETWEEN)
            flow = await traffic.flow()
        return flow
    finally:
        await traffic.close()


def _print(what: str, rows: Sequence[Mapping[str, Cell]]) -> None:
    table(what, rows, {"report": what})


def table(title: str, rows: Sequence[Mapping[str, Cell]], also: Mapping[str, Cell]) -> None:
    """Rows as a table on a terminal, as NDJSON in a pipe: there with what else tells them apart."""
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.buffer.write(msgspec.json.encode({**also, **row}) + b"\n")
        return
    if not rows:
        return
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, name in enumerate(cells(rows[0])):
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        made.add_column(name, justify="right" if numeric and i else "left", overflow="fold")
    for row in rows:
        state = str(row.get("state") or "").partition(" ")[0].rstrip(",")
        made.add_row(*cells(row).values(), style=COLOURS.get(state))
    Console().print(made)
    Console().print()


def cells(row: Mapping[str, Cell]) -> dict[str, str]:
    """A row as a terminal shows it: numbers to be read, pids to be pasted, `~` before what is estimated.

    >>> cells({"process": "worker", "pid": 13065, "metrics": None})
    {'process': 'worker', 'pid': '13065', 'metrics': '-'}
    >>> cells({"topic": "features.Customer", "records": 9705, "exact": False})
    {'topic': 'features.Customer', 'records': '~9,705'}
    """
    shown = {}
    for name, value in row.items():
        if name == "exact":
            continue
        plain = name == "pid" or not isinstance(value, int | float)
        shown[name] = "-" if value in (None, "") else str(value) if plain else f"{value:,}"
    if row.get("exact") is False:
        shown["records"] = f"~{shown['records']}"
    return shown
