"""The meaning of aggregations, written apart from the engine: one event at a time, in plain Python, from the
whole history every time. It shares no code with `streams/`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

SECOND = 1_000_000


@dataclass
class Fold:
    """One aggregation. panes: how many a window has. width: microseconds of a pane, 0 where panes are events
    (the last n), None for all time. ring: panes that an entity keeps."""

    kind: str
    of: str
    value: str = ""
    width: int | None = None
    panes: int = 1
    ring: int = 1
    gap: int = 0
    late: int = 0
    half_life: int = 0
    where: Any = None
    kept: dict[Any, list[tuple[int, int, dict[str, Any]]]] = field(default_factory=dict)

    def take(self, key: Any, time: int, row: dict[str, Any]) -> None:
        """Keeps (pane, time, row) in the order in which they came; what has left the ring is dropped."""
        if key is None or (self.where is not None and not self.where(row)):
            return
        kept = self.kept.setdefault(key, [])
        if self.gap:
            latest = max((t for _, t, _ in kept), default=time)
            if time >= latest - self.late - self.gap or self._session(kept, time):
                kept.append((0, time, row))
            return
        newest = max((pane for pane, _, _ in kept), default=None)
        if self.width is None:
            pane = 0
        elif self.width == 0:
            pane = 0 if newest is None else newest + 1
        else:
            pane = time // self.width
        if newest is not None and pane <= newest - self.ring:
            return
        kept.append((pane, time, row))
        head = max(pane for pane, _, _ in kept)
        self.kept[key] = [event for event in kept if event[0] > head - self.ring]

    def own_pane(self, key: Any, time: int) -> int:
        if self.width:
            return time // self.width
        newest = max((pane for pane, _, _ in self.kept.get(key, [])), default=0)
        return newest if self.width == 0 else 0

    def as_of(self, key: Any, time: int) -> Any:
        if key is None:
            return None
        own = self.own_pane(key, time)
        held = self.kept.get(key, [])
        if self.gap:
            held = [(own, t, row) for _, t, row in self._session(held, time)]
        if self.kind == "distinct":
            return self._distinct(held, own)
        covered = [event for event in held if own - self.panes < event[0] <= own]
        numbers = [*sorted({pane for pane, _, _ in covered if pane < own}, reverse=True), own]
        panes = [[(t, row.get(self.value)) for p, t, row in covered if p == number] for number in numbers]
        return getattr(self, "_" + self.kind)(panes, time)

    def _session(self, held: list[tuple[int, int, dict[str, Any]]], time: int) -> list[Any]:
        """The events of the session that holds this time, or that it would join."""
        clusters: list[list[Any]] = []
        latest = None
        for event in sorted(held, key=lambda event: event[1]):
            if latest is None or event[1] - latest >= self.gap:
                clusters.append([])
            clusters[-1].append(event)
            latest = event[1]
        live = [c for c in clusters if c[-1][1] >= latest - self.late - 2 * self.gap] if latest else []
        near = [c for c in live if c[0][1] - self.gap < time < c[-1][1] + self.gap]
        return [event for event in held if near and any(event is one for one in near[0])]

    def _distinct(self, held: list[tuple[int, int, dict[str, Any]]], own: int) -> int:
        last: dict[Any, int] = {}
        for pane, _, row in held:
            value = row[self.value]
            if value is not None and pane > last.get(value, -1):
                last[value] = pane
        return sum(1 for pane in last.values() if pane > own - self.panes)

    def _count(self, panes: Any, time: int) -> int:
        return sum(len(pane) for pane in panes)

    def _sum(self, panes: Any, time: int) -> Any:
        if any(isinstance(v, int) for pane in panes for _, v in pane):
            return sum(v for pane in panes for _, v in pane)
        total = 0.0
        for pane in panes:
            inner = 0.0
            for _, value in pane:
                if value is not None:
                    inner += value
            total += inner
        return total

    def _mean(self, panes: Any, time: int) -> float | None:
        count = sum(1 for pane in panes for _, v in pane if v is not None)
        return self._sum(panes, time) / count if count else None

    def _variance(self, panes: Any, time: int) -> float | None:
        n, mean, m2 = 0.0, 0.0, 0.0
        for pane in panes:
            b, its_mean, its_m2 = 0.0, 0.0, 0.0
            for _, value in pane:
                if value is not None:
                    b += 1.0
                    delta = value - its_mean
                    its_mean += delta / b
                    its_m2 += delta * (value - its_mean)
            if b:
                delta = its_mean - mean
                mean += delta * (b / (n + b))
                m2 += its_m2 + delta * delta * (n * b / (n + b))
                n += b
        return m2 / (n - 1.0) if n >= 2 else None

    def _present(self, panes: Any) -> list[Any]:
        return [v for pane in panes for _, v in pane if v is not None]

    def _min(self, panes: Any, time: int) -> Any:
        return min(self._present(panes), default=None)

    def _max(self, panes: Any, time: int) -> Any:
        return max(self._present(panes), default=None)

    def _timed(self, panes: Any) -> list[tuple[int, Any]]:
        """Values with their times; events of one time in the order in which they came."""
        ordered = [*panes[-2::-1], panes[-1]]
        return sorted(((t, v) for pane in ordered for t, v in pane if v is not None), key=lambda p: p[0])

    def _first(self, panes: Any, time: int) -> Any:
        return next((v for _, v in self._timed(panes)), None)

    def _last(self, panes: Any, time: int) -> Any:
        return next((v for _, v in reversed(self._timed(panes))), None)

    def _since_last(self, panes: Any, time: int) -> float | None:
        latest = max((t for pane in panes for t, _ in pane), default=None)
        return None if latest is None else (time - latest) / 1e6

    def _decayed(self, panes: Any, time: int) -> float:
        rate = math.log(2.0) / self.half_life
        total, at = 0.0, None
        for when, value in ((t, 1.0 if self.value == "" else v) for pane in panes for t, v in pane):
            if value is None:
                continue
            if at is None:
                total, at = value, when
            elif when >= at:
                total, at = total * math.exp(-rate * (when - at)) + value, when
            else:
                total += value * math.exp(-rate * (at - when))
        return total * math.exp(-rate * max(time - at, 0)) if at is not None else 0.0


def as_of_each(
    events: list[tuple[str, Any, int, dict[str, Any]]], main: str, folds: dict[str, Fold]
) -> list[dict[str, Any]]:
    """The value of every fold as of every event of the stream `main`. An event: (stream, key, time, row)."""
    found = []
    for stream, key, time, row in events:
        values = {}
        if stream == main:
            values = {n: f.as_of(key, time) for n, f in folds.items() if f.kind == "since_last"}
        for fold in folds.values():
            if fold.of == stream:
                fold.take(key, time, row)
        if stream == main:
            values |= {n: f.as_of(key, time) for n, f in folds.items() if f.kind != "since_last"}
            found.append(values)
    return found


@dataclass
class Span:
    """A kind of window: (start, end) of the windows of a time, or the gap of sessions."""

    size: int = 0
    every: int = 0
    gap: int = 0

    def windows(self, times: list[int]) -> list[tuple[int, int]]:
        """Every window that these times fall into."""
        found: list[tuple[int, int]] = []
        if self.gap:
            for time in sorted(times):
                if found and time - found[-1][1] < self.gap:
                    found[-1] = (found[-1][0], time)
                else:
                    found.append((time, time))
            return found
        for time in times:
            start = time // self.every * self.every
            while start > time - self.size:
                found.append((start, start + self.size))
                start -= self.every
        return sorted(set(found))

    def inside(self, time: int, window: tuple[int, int]) -> bool:
        return window[0] <= time <= window[1] if self.gap else window[0] <= time < window[1]


def window_rows(
    events: list[tuple[Any, int, dict[str, Any]]],
    watermark: list[int],
    lateness: int | list[int],
    span: Span,
    early: int = 0,
) -> list[dict[str, Any]]:
    """The rows that windows publish, one event (key, time, row) at a time. `rows`: what the window covers.

    lateness: of all events, or of each. early: how often open windows that have changed are told, with `early`.
    """
    allowed = [lateness] * len(events) if isinstance(lateness, int) else lateness
    held: dict[Any, list[tuple[int, int, dict[str, Any]]]] = {}
    shown: dict[tuple[Any, int], tuple[int, list[int]]] = {}
    ends: dict[tuple[Any, int], int] = {}
    due: dict[tuple[Any, int], int] = {}
    found: list[dict[str, Any]] = []
    for i, (key, time, row) in enumerate(events):
        if key is not None and time >= watermark[i] - allowed[i]:
            held.setdefault(key, []).append((i, time, row))
            for start, _ in span.windows([time]) if early else ():
                due.setdefault((key, start), (watermark[i] // early + 1) * early)
        now: dict[tuple[Any, int], int] = {}
        for one, mine in held.items():
            now |= {(one, start): end for start, end in span.windows([t for _, t, _ in mine])}
        gone = [window for window in shown if window not in now]
        for one, start in sorted(gone, key=lambda w: (ends[w], w[1], w[0])):
            revision, _ = shown.pop((one, start))
            end = ends[one, start]
            found.append({"key": one, "start": start, "end": end, "revision": revision, "retracted": True})
        for (one, start), end in sorted(now.items(), key=lambda w: (w[1], w[0][1], w[0][0])):
            covered = [event for event in held[one] if span.inside(event[1], (start, end))]
            ids = [event[0] for event in covered]
            revision, before = shown.get((one, start), (0, []))
            told = {"key": one, "start": start, "end": end, "revision": revision}
            rows = [(t, r) for _, t, r in covered]
            if end + span.gap <= watermark[i]:
                due.pop((one, start), None)
                if ids != before:
                    shown[one, start] = (revision + 1, ids)
                    found.append({**told, "rows": rows})
            elif due.get((one, start), watermark[i] + 1) <= watermark[i]:
                del due[one, start]
                found.append({**told, "rows": rows, "early": True})
        ends = now
    return found
