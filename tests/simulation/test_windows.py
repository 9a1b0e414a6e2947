"""Windows, joins and features over several streams and two partitions, on the simulated log."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from headrace.streams import aggregations as agg
from headrace.streams.batch import Record
from headrace.streams.event import Event
from headrace.streams.expressions import Expression, col
from headrace.streams.features import Features
from headrace.streams.joins import lookup
from headrace.streams.log import Partition
from headrace.streams.windows import last_n, session, sliding, tumbling

from headrace.app import App
from headrace.plan import stages
from tests.simulation.fleet import Chaos, Fleet
from tests.simulation.log import SimulatedLog
from tests.simulation.seeds import BLOCKS, bound, check
from tests.simulation.source import publish
from tests.simulation.state import from_source, other_bytes, unequal
from tests.simulation.world import World
from tests.streams.oracle import SECOND, Fold, Span, as_of_each, window_rows

START = 1_262_304_000 * SECOND  # 2010-01-01
PARTITIONS = 2
HOME = {"a": 0, "b": 1, "c": 0, "d": 1}


class Trade(Event, topic="trades", key="who", time="at", lateness="5s", out_of_orderness="1s"):
    who: str
    n: int
    x: float | None
    s: str | None
    at: datetime


class Refund(Event, topic="refunds", key="who", time="at", lateness="3s"):
    who: str
    n: int
    x: float | None
    s: str | None
    at: datetime


class Profile(Event, topic="profiles", key="who", time="at", lateness="4s"):
    who: str
    tier: str | None
    limit: float | None
    at: datetime


BEHIND = {"trades": 6, "refunds": 3, "profiles": 4}
"""Seconds that an event may be behind the newest of its topic."""
SLACK = {"trades": 1, "refunds": 0, "profiles": 0}
"""Seconds that the watermark stays behind it."""
WAKE = {"trades": 0, "refunds": 0, "profiles": 86_400}
"""Seconds that it may lie further behind the stage's watermark after a silence: no window's results are of profiles."""


class AsOf(Features, of=Trade, by="who"):
    n_10s = agg.count("10s")
    n_far = agg.count("10s", of=Refund)
    total = agg.sum(col.x, "10s")
    back = agg.sum(col.n, sliding("12s", pane="4s"), of=Refund)
    mean = agg.mean(col.x, tumbling("7s"))
    spread = agg.variance(col.n, "10s")
    least = agg.min(col.n, last_n(3))
    most = agg.max(col.x, "10s", of=Refund)
    first = agg.first(col.s, tumbling("7s"))
    last = agg.last(col.s, "10s", of=Refund)
    kinds = agg.distinct(col.s, "10s")
    ever = agg.distinct(col.s)
    visit = agg.count(session("4s"))
    visit_far = agg.sum(col.n, session("4s"), of=Refund)
    gap = agg.since_last()
    faded = agg.decayed(col.x, half_life="5s")
    dear = agg.count("10s", where=col.n > 3)


def late_ring(topic: str, width: int, panes: int) -> int:
    return panes + -(-BEHIND[topic] * SECOND // width)


def sliding_fold(kind: str, topic: str, value: str = "", width: int = SECOND, panes: int = 10, **more: Any) -> Fold:
    return Fold(kind, topic, value, width, panes, late_ring(topic, width, panes), **more)


def folds() -> dict[str, Fold]:
    behind = {topic: seconds * SECOND for topic, seconds in BEHIND.items()}
    return {
        "n_10s": sliding_fold("count", "trades"),
        "n_far": sliding_fold("count", "refunds"),
        "total": sliding_fold("sum", "trades", "x"),
        "back": sliding_fold("sum", "refunds", "n", 4 * SECOND, 3),
        "mean": sliding_fold("mean", "trades", "x", 7 * SECOND, 1),
        "spread": sliding_fold("variance", "trades", "n"),
        "least": Fold("min", "trades", "n", 0, 3, 3),
        "most": sliding_fold("max", "refunds", "x"),
        "first": sliding_fold("first", "trades", "s", 7 * SECOND, 1),
        "last": sliding_fold("last", "refunds", "s"),
        "kinds": sliding_fold("distinct", "trades", "s"),
        "ever": Fold("distinct", "trades", "s"),
        "visit": Fold("count", "trades", gap=4 * SECOND, late=behind["trades"]),
        "visit_far": Fold("sum", "refunds", "n", gap=4 * SECOND, late=behind["refunds"]),
        "gap": Fold("since_last", "trades"),
        "faded": Fold("decayed", "trades", "x", half_life=5 * SECOND),
        "dear": sliding_fold("count", "trades", where=lambda row: row["n"] > 3),
    }


class Joined(Features, of=Trade, by="who"):
    tier = lookup(Profile, "tier")
    limit = lookup(Profile, "limit")
    tier_then = lookup(Profile, "tier", history=2)
    left = lookup(Profile, "limit", history=2) - col.n
    share = col.n / AsOf.n_10s


class Pair(Features, of=Trade, by=("who", "s")):
    n = agg.count()
    most = agg.max(col.n, "10s")


VALUES: dict[str, Expression] = {
    "count": agg.count(), "sum": agg.sum(col.n), "total": agg.sum(col.x), "mean": agg.mean(col.x),
    "least": agg.min(col.n), "last": agg.last(col.x), "kinds": agg.distinct(col.s), "half": agg.quantile(col.n, 0.5),
    "rough": agg.distinct(col.s, approximate=True), "big": agg.count(where=col.n > 3),
}  # fmt: skip


class Tumbling(Features, of=Trade, by="who", window=tumbling("4s")):
    locals().update(VALUES)
    refunded = agg.count(of=Refund)


class Early(Features, of=Trade, by="who", window=tumbling("10s"), early="2s"):
    locals().update(VALUES)


class Sliding(Features, of=Trade, by="who", window=sliding("5s", every="2s")):
    locals().update(VALUES)


class Visits(Features, of=Trade, by="who", window=session("3s")):
    locals().update(VALUES)


class Lately(Features, of=Trade, by="who", window=last_n(3, every=2)):
    total = agg.sum(col.n)
    most = agg.max(col.x)


class Refunds(Features, of=Refund, by="who", window=tumbling("4s")):
    locals().update(VALUES)


SPANS = {
    "Tumbling": ("trades", Span(4 * SECOND, 4 * SECOND), 0),
    "Early": ("trades", Span(10 * SECOND, 10 * SECOND), 2 * SECOND),
    "Sliding": ("trades", Span(5 * SECOND, 2 * SECOND), 0),
    "Visits": ("trades", Span(gap=3 * SECOND), 0),
    "Refunds": ("refunds", Span(4 * SECOND, 4 * SECOND), 0),
}

APP = App(
    "windows",
    features=[AsOf, Joined, Pair, Tumbling, Early, Sliding, Visits, Lately, Refunds],
    partitions=PARTITIONS,
)


def event(topic: str, time: int, who: str, **values: Any) -> Record:
    row = {"who": who, **values, "at": datetime.fromtimestamp(time / SECOND, UTC).isoformat()}
    return Record(topic, who.encode(), json.dumps(row).encode(), HOME[who])


def scenario(world: World) -> dict[Partition, list[Record]]:
    """Events of three topics, mostly in order; some behind, within lateness and beyond it; some broken."""
    random = world.random
    found: dict[Partition, list[Record]] = {}
    now = START
    for _ in range(random.choice([10, 40, 80])):
        now += int(random.choice([0, 0, 0.5, 1, 1, 3, 5]) * SECOND)
        time = max(START, now - random.choice([0] * 8 + [1, 2, 4, 6, 9, 20]) * SECOND)
        who, topic = random.choice("abcd"), random.choice(["trades", "trades", "trades", "refunds", "profiles"])
        if topic == "profiles":
            values: dict[str, Any] = {
                "tier": random.choice(["tin", "gold", None]), "limit": random.choice([None, 1.5, 10.0])
            }  # fmt: skip
        else:
            x = random.choice([None, random.randint(-40, 40) / 4])
            values = {"n": random.randint(-4, 9), "x": x, "s": random.choice(["p", "q", "r", None])}
        if random.random() < 0.03:
            values[random.choice(list(values))] = [1]
        record = event(topic, time, who, **values)
        found.setdefault(Partition(topic, HOME[who]), []).append(record)
    return found


def simulate(seed: int) -> Fleet:
    world = World(seed)
    fleet = Fleet(world, SimulatedLog(world), stages(APP, memory=bound(seed)), Chaos.drawn(world))
    world.spawn("clients", publish(fleet, scenario(world)))
    world.spawn("supervisor", fleet.supervise())
    world.run()
    return fleet


@dataclass
class Merged:
    """A stage's events in the order in which it takes them, with the watermark after each; and what it refuses."""

    events: list[tuple[str, int, int, dict[str, Any]]] = field(default_factory=list)  # topic, offset, time, row
    watermark: list[int] = field(default_factory=list)
    rejected: dict[str, list[bytes | None]] = field(default_factory=dict)
    late: dict[str, list[bytes | None]] = field(default_factory=dict)


def merged(fleet: Fleet, topics: Sequence[str], number: int) -> Merged:
    """By silences, the greatest event time that each topic has seen, topic and offset.

    Late is what lies behind the topic's own watermark before it, or, after a silence, behind the stage's.
    """
    found = Merged()
    waiting: list[tuple[int, int, int, int, str, int, dict[str, Any], bytes | None, bool]] = []
    for place, topic in enumerate(topics):
        rejected: list[bytes | None] = found.rejected.setdefault(topic, [])
        found.late[topic] = []
        high = 0
        for offset, entry in fleet.log.committed_entries(topic, number):
            row = json.loads(entry.record.value or b"")
            if [1] in row.values():
                rejected.append(entry.record.value)
                continue
            at = round(datetime.fromisoformat(row["at"]).timestamp() * SECOND)
            late = at < high - BEHIND[topic] * SECOND
            high = max(high, at)
            age = fleet.age(Partition(topic, number), offset)
            waiting.append((age, high, place, offset, topic, at, row, entry.record.value, late))
    newest = 0
    for _, high, _, offset, topic, at, row, value, late in sorted(waiting, key=lambda w: w[:4]):
        newest = max(newest, high)
        watermark = newest - max(SLACK[t] for t in topics) * SECOND
        if late or at < watermark - (BEHIND[topic] - SLACK[topic] + WAKE[topic]) * SECOND:
            found.late[topic].append(value)
            continue
        found.events.append((topic, offset, at, row))
        found.watermark.append(watermark)
    return found


def values(log: SimulatedLog, topic: str, number: int) -> list[Any]:
    return [json.loads(record.value or b"") for record in log.committed_records(topic, number)]


def wrong(fleet: Fleet) -> list[str]:
    found = []
    for stage in fleet.stages:
        for number in range(stage.partitions):
            told = merged(fleet, stage.inputs, number)
            for topic in stage.outputs:
                main, _, kind = topic.rpartition(".")
                if kind in ("rejected", "late"):
                    got = [r.value for r in fleet.log.committed_records(topic, number)]
                    refused = (told.rejected if kind == "rejected" else told.late)[main]
                    found += [f"{topic}: {got}, not {refused}"] if got != refused else []
            for name in [t.partition(".")[2] for t in stage.outputs if t.startswith("features.")]:
                got_rows = [plain(row) for row in values(fleet.log, f"features.{name}", number)]
                found += differences(f"features.{name}-{number}", got_rows, wanted(name, told, number))
            source = from_source(fleet, stage, number)
            found += other_bytes(fleet.log, stage.outputs, number, source)
            found += unequal(fleet, (stage.name, number), source, probe(number))
    return found


def probe(number: int) -> dict[str, list[Record]]:
    """Events of every entity a while after the last, then one that closes every window."""
    mine = [who for who, home in HOME.items() if home == number]
    near, far = START + 100 * SECOND, START + 10_000 * SECOND
    tier: dict[str, Any] = {"tier": None, "limit": None}
    traded: dict[str, Any] = {"n": 1, "x": 0.25, "s": "q"}
    return {
        "trades": [event("trades", t, who, **traded) for t in (near, far, far) for who in mine],
        "refunds": [event("refunds", t, who, **traded) for t in (near, far, far) for who in mine],
        "profiles": [event("profiles", far, who, **tier) for who in mine],
    }


def plain(row: dict[str, Any]) -> dict[str, Any]:
    times = {name: micros(row[name]) for name in ("at", "start", "end") if row.get(name)}
    return {**row, **times}


def micros(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * SECOND)


def head(told: Merged, number: int) -> list[dict[str, Any]]:
    """What tells the event of each features record of trades."""
    return [
        {"id": f"trades-{number}-{offset}", "who": row["who"], "at": at}
        for topic, offset, at, row in told.events
        if topic == "trades"
    ]


def as_of(told: Merged, number: int) -> list[dict[str, Any]]:
    found = as_of_each([(t, row["who"], at, row) for t, _, at, row in told.events], "trades", folds())
    return [{**one, **values} for one, values in zip(head(told, number), found, strict=True)]


def pairs(told: Merged, number: int) -> list[dict[str, Any]]:
    events = [(t, None if row.get("s") is None else (row["who"], row["s"]), at, row) for t, _, at, row in told.events]
    both = {"n": Fold("count", "trades"), "most": sliding_fold("max", "trades", "n")}
    found = as_of_each(events, "trades", both)
    kinds = [row["s"] for topic, _, _, row in told.events if topic == "trades"]
    return [{**one, "s": s, **v} for one, s, v in zip(head(told, number), kinds, found, strict=True)]


def joined(told: Merged, number: int) -> list[dict[str, Any]]:
    """The table as it stands, and as it stood at the event's time, of the last two of its rows."""
    profiles: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    kept: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    found = []
    counts = iter(as_of(told, number))
    for topic, _, at, row in told.events:
        who = row["who"]
        mine = kept.setdefault(who, [])
        if topic == "profiles":
            profiles.setdefault(who, []).append((at, row))
            if len(mine) < 2 or at >= mine[0][0]:
                kept[who] = sorted([v for v in mine if v[0] != at] + [(at, row)], key=lambda v: v[0])[-2:]
        elif topic == "trades":
            now: dict[str, Any] = {"tier": None, "limit": None}
            for _, profile in sorted(profiles.get(who, []), key=lambda v: v[0]):
                now |= {name: profile[name] for name in now if profile[name] is not None}
            valid = [profile for time, profile in mine if time <= at]
            then = valid[-1] if valid else {"tier": None, "limit": None}
            left = None if then["limit"] is None else then["limit"] - row["n"]
            share = row["n"] / next(counts)["n_10s"]
            found.append({**now, "tier_then": then["tier"], "left": left, "share": share})
    return [{**one, **values} for one, values in zip(head(told, number), found, strict=True)]


def windowed(name: str, told: Merged) -> list[dict[str, Any]]:
    main, span, early = SPANS[name]
    streams = {main, "refunds"} if name == "Tumbling" else {main}
    allowed = {"trades": 5 * SECOND, "refunds": 3 * SECOND, "profiles": 0}
    rows = window_rows(
        [(row["who"] if t in streams else None, at, {**row, "of": t}) for t, _, at, row in told.events],
        told.watermark,
        [allowed[t] for t, _, _, _ in told.events],
        span,
        early,
    )
    found = []
    for row in rows:
        one = {"who": row["key"], "start": row["start"], "end": row["end"], "revision": row["revision"]}
        if "retracted" in row:
            found.append({**one, "final": True, "retracted": True})
            continue
        one |= {"final": "early" not in row, **folded([(t, r) for t, r in row["rows"] if r["of"] == main])}
        if name == "Tumbling":
            one["refunded"] = sum(r["of"] == "refunds" for _, r in row["rows"])
        found.append(one)
    return found


def folded(rows: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    ns = [row["n"] for _, row in rows]
    xs = [row["x"] for _, row in rows if row["x"] is not None]
    timed = [row["x"] for _, row in sorted(rows, key=lambda event: event[0]) if row["x"] is not None]
    kinds = len({row["s"] for _, row in rows if row["s"] is not None})
    return {
        "count": len(rows), "sum": sum(ns), "total": sum(xs, 0.0), "mean": sum(xs) / len(xs) if xs else None,
        "least": min(ns, default=None), "last": timed[-1] if timed else None, "kinds": kinds,
        "half": float(sorted(ns)[(len(ns) - 1) // 2]) if ns else None, "rough": kinds,
        "big": sum(n > 3 for n in ns),
    }  # fmt: skip


def lately(told: Merged, number: int) -> list[dict[str, Any]]:
    mine: dict[str, list[dict[str, Any]]] = {}
    found = []
    for topic, _, at, row in told.events:
        if topic == "trades":
            events = mine.setdefault(row["who"], [])
            events.append(row)
            if len(events) % 2 == 0:
                xs = [e["x"] for e in events[-3:] if e["x"] is not None]
                total = sum(e["n"] for e in events[-3:])
                found.append(
                    {"who": row["who"], "start": None, "end": at, "revision": 0, "final": True, "total": total,
                     "most": max(xs, default=None)}
                )  # fmt: skip
    return found


def wanted(name: str, told: Merged, number: int) -> list[dict[str, Any]]:
    """The records of a feature set."""
    if name in SPANS:
        return windowed(name, told)
    return {"AsOf": as_of, "Pair": pairs, "Joined": joined, "Lately": lately}[name](told, number)


def differences(topic: str, got: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> list[str]:
    found = [] if len(got) == len(wanted) else [f"{topic}: {len(got)} records, not {len(wanted)}"]
    for i, (mine, theirs) in enumerate(zip(got, wanted, strict=False)):
        names = [n for n in {**mine, **theirs} if not near(n, mine.get(n, "-"), theirs.get(n, "-"))]
        found += [f"{topic} {i}: {n} is {mine.get(n, '-')!r}, not {theirs.get(n, '-')!r}" for n in names]
    return found


def near(name: str, a: object, b: object) -> bool:
    """Quantiles are promised within a hundredth, sums of floats to rounding, everything else exactly."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=0.011 if name == "half" else 1e-9, abs_tol=1e-9)
    return bool(a == b)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_windows_joins_and_features_are_a_function_of_their_events_whatever_dies(block: int) -> None:
    check("windows", block, lambda seed: wrong(simulate(seed)))
