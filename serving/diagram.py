"""The pipeline as a drawing: topics and processors in columns, left to right, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from headrace.streams.topics import Processor, Topic
from headrace.streams.traffic import Flow, TopicFlow

WIDTH, HEIGHT = 190, 46
"""Of a node."""
GAP_X, GAP_Y = 64, 20
CLOSE = 30
"""The horizontal gap where there are more columns than ROOMY."""
ROOMY = 5
MARGIN = 6
LONGEST = 26
"""Characters of a name that fit into a node."""
BEHIND = 5.0
"""Seconds of work. A processor whose lag is more than it does in that time is shown as behind."""

STYLE = """
.pipeline { width: 100%; min-width: 900px; height: auto; display: block; font-family: inherit; }
.pipeline rect { stroke-width: 1.2; }
.pipeline .topic rect { fill: var(--node); stroke: var(--line); }
.pipeline .processor rect { fill: var(--accent-soft); stroke: var(--accent); }
.pipeline .behind rect { fill: var(--warn-soft); stroke: var(--warn); }
.pipeline .name { font-size: 13px; font-weight: 600; fill: var(--ink); }
.pipeline .figure { font-size: 11.5px; fill: var(--dim); font-variant-numeric: tabular-nums; }
.pipeline .aside { fill: var(--warn); font-weight: 600; }
.pipeline .edge { fill: none; stroke: var(--line); stroke-width: 1.6; }
.pipeline .flows { stroke: var(--accent); stroke-dasharray: 5 5; animation: flow 1s linear infinite; }
@keyframes flow { to { stroke-dashoffset: -20; } }
@media (prefers-reduced-motion: reduce) { .pipeline .flows { animation: none; } }
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node lies."""

    x: float
    y: float


def columns(topics: Sequence[Topic], processors: Sequence[Processor]) -> list[list[str]]:
    """Node names by column, sources first: a topic as `t:name`, a processor as `p:name`.

    A node lies right of everything that leads to it; an edge that closes a loop does not count.
    """
    shown = {t.name for t in topics if _shown(t)}
    after: dict[str, list[str]] = {f"t:{t.name}": [] for t in topics if t.name in shown}
    for processor in processors:
        node = f"p:{processor.name}"
        after[node] = [f"t:{name}" for name in processor.outputs if name in shown]
        for name in processor.inputs:
            if name in shown:
                after[f"t:{name}"].append(node)
    depth: dict[str, int] = dict.fromkeys(after, 0)

    def lead(node: str, at: int, way: tuple[str, ...]) -> None:
        if node in way or (at <= depth[node] and at > 0):
            return
        depth[node] = at
        for following in after[node]:
            lead(following, at + 1, (*way, node))

    reached = {f for following in after.values() for f in following}
    for node in [n for n in after if n not in reached] or list(after)[:1]:
        lead(node, 0, ())
    laid: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node, column in depth.items():
        laid[column].append(node)
    return [column for column in laid if column]


def draw(topics: Sequence[Topic], processors: Sequence[Processor], flow: Flow, counts: Mapping[str, int]) -> str:
    """The drawing, with the rates and lags of `flow`. counts: of late and rejected records by topic."""
    laid = columns(topics, processors)
    if not laid:
        return ""
    tallest = max(len(column) for column in laid)
    gap = GAP_X if len(laid) <= ROOMY else CLOSE
    width = 2 * MARGIN + len(laid) * WIDTH + (len(laid) - 1) * gap
    height = 2 * MARGIN + tallest * (HEIGHT + GAP_Y)
    places = {}
    for i, column in enumerate(laid):
        top = (height - len(column) * (HEIGHT + GAP_Y) + GAP_Y) / 2
        for j, node in enumerate(column):
            places[node] = Place(MARGIN + i * (WIDTH + gap), top + j * (HEIGHT + GAP_Y))
    rates = {f"t:{t.name}": t.rate for t in flow.topics} | {f"p:{p.name}": p.rate for p in flow.processors}
    parts = []
    for processor in processors:
        node = f"p:{processor.name}"
        ends = [(f"t:{n}", node, rates.get(node, 0)) for n in processor.inputs]
        ends += [(node, f"t:{n}", rates.get(f"t:{n}", 0)) for n in processor.outputs]
        for a, b, rate_of_it in ends:
            if a in places and b in places:
                parts.append(_edge(_way(places, laid, a, b), rate_of_it))
    written = {t.name: t for t in flow.topics}
    for topic in topics:
        if f"t:{topic.name}" in places:
            seen = written.get(topic.name)
            figure = f"{rate(seen.rate)} · {_held(topic, seen, counts)}" if seen else "-"
            aside = _aside(topic, counts)
            parts.append(_node("topic", topic.name, figure, aside, places[f"t:{topic.name}"]))
    lags = {p.name: p for p in flow.processors}
    for processor in processors:
        at = lags.get(processor.name)
        behind = bool(at and at.lag and at.lag > 100 + BEHIND * at.rate)
        figure = "-" if at is None or at.lag is None else f"{rate(at.rate)} · lag {count(at.lag)}"
        kind = "processor behind" if behind else "processor"
        parts.append(_node(kind, processor.name, figure, "", places[f"p:{processor.name}"]))
    title = "topics and processors with their rates and lags"
    return (
        f'<svg class="pipeline" role="group" aria-label="{title}" viewBox="0 0 {width} {height}" '
        f'style="max-height: {height}px">{"".join(parts)}</svg>'
    )


def _shown(topic: Topic) -> bool:
    """Late and rejected events are told at their own topic; a changelog is a processor's memory."""
    return topic.kind not in ("late", "rejected", "changelog")


def _held(topic: Topic, seen: TopicFlow, counts: Mapping[str, int]) -> str:
    """What a topic holds: as counted, where it is read whole, or else as estimated."""
    whole = topic.kind in ("metrics", "drift")
    return held(counts.get(topic.name, 0), True) if whole else held(seen.records, seen.exact)


def _aside(topic: Topic, counts: Mapping[str, int]) -> str:
    found = [(kind, counts.get(f"{topic.name}.{kind}", 0)) for kind in ("late", "rejected")]
    return " · ".join(f"{count(n)} {kind}" for kind, n in found if n)


def _node(kind: str, name: str, figure: str, aside: str, at: Place) -> str:
    short = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
    radius = 7 if kind == "topic" else HEIGHT / 2
    x = at.x + (12 if kind == "topic" else 20)
    below = f'<text class="figure aside" x="{x}" y="{at.y + HEIGHT + 14}">{escape(aside)}</text>' if aside else ""
    return (
        f'<g class="{kind}"><title>{escape(name)}</title>'
        f'<rect x="{at.x}" y="{at.y}" width="{WIDTH}" height="{HEIGHT}" rx="{radius}"/>'
        f'<text class="name" x="{x}" y="{at.y + 19}">{escape(short)}</text>'
        f'<text class="figure" x="{x}" y="{at.y + 36}">{escape(figure)}</text>{below}</g>'
    )


def _way(places: Mapping[str, Place], laid: Sequence[Sequence[str]], start: str, end: str) -> list[Place]:
    """From node to node, through the gap nearest to the straight line in every column between."""
    a, b = places[start], places[end]
    way = [Place(a.x + WIDTH, a.y + HEIGHT / 2)]
    last = Place(b.x, b.y + HEIGHT / 2)
    for column in laid:
        x = places[column[0]].x
        if a.x < x < b.x:
            straight = way[0].y + (last.y - way[0].y) * (x + WIDTH / 2 - way[0].x) / (last.x - way[0].x)
            tops = [places[node].y for node in column]
            gaps = [top - GAP_Y / 2 for top in tops] + [tops[-1] + HEIGHT + GAP_Y / 2]
            y = min(gaps, key=lambda gap: abs(gap - straight))
            way += [Place(x, y), Place(x + WIDTH, y)]
    return [*way, last]


def _edge(way: Sequence[Place], rate_of_it: float) -> str:
    """Curves between the columns, straight lines through them."""
    path = f"M{way[0].x} {way[0].y}"
    for n, (a, b) in enumerate(pairwise(way)):
        bend = max(CLOSE / 2, abs(b.x - a.x) / 2)
        path += f" L{b.x} {b.y}" if n % 2 else f" C{a.x + bend} {a.y} {b.x - bend} {b.y} {b.x} {b.y}"
    flows = " flows" if rate_of_it > 0 else ""
    return f'<path class="edge{flows}" d="{path}"/>'


def rate(value: float) -> str:
    """A rate to be read at a glance.

    >>> rate(0.25), rate(12), rate(43210)
    ('0.3/s', '12/s', '43.2k/s')
    """
    if 0 < value < 10:
        return f"{value:.1f}/s"
    return f"{count(value)}/s"


def count(value: float) -> str:
    """A number to be read at a glance.

    >>> count(999), count(8766), count(1067371)
    ('999', '8,766', '1.07M')
    """
    if value < 10_000:
        return f"{value:,.0f}"
    if value < 1_000_000:
        return f"{value / 1000:.1f}k"
    return f"{value / 1e6:.2f}M" if value < 1e9 else f"{value / 1e9:.2f}G"


def held(records: int, exact: bool) -> str:
    """How many records a topic holds; `~` says that it is estimated.

    >>> held(8766, True), held(8766, False), held(0, False)
    ('8,766', '~8,766', '0')
    """
    return count(records) if exact or not records else f"~{count(records)}"
