"""Small charts as SVG: lines over a logarithmic axis of counts, and bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDE, HIGH, LEFT, RIGHT, TOP, FOOT = 640, 360, 60, 170, 40, 50
COLOURS = ("#1f6feb", "#d1442f", "#2a9d57", "#8250df")

Line = Sequence[tuple[float, float]]


def short(count: float) -> str:
    """A count as an axis writes it: 1k, 5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"


def chart(title: str, across: str, up: str, lines: Mapping[str, Line]) -> str:
    """An SVG of named lines, each (x, y) with x above 0; y begins at 0."""
    xs = sorted({x for line in lines.values() for x, _ in line})
    top = _round(max(y for line in lines.values() for _, y in line))
    low, high = math.log10(xs[0]), math.log10(xs[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        over = (math.log10(x) - low) / ((high - low) or 1)
        return LEFT + over * (WIDE - LEFT - RIGHT), HIGH - FOOT - y / top * (HIGH - TOP - FOOT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDE}" height="{HIGH}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for n in range(5):
        x, y = place(xs[0], top * n / 4)
        parts.append(f'<path d="M{x:.0f} {y:.1f}H{WIDE - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 4:.1f}" text-anchor="end">{top * n / 4:g}</text>')
    for x_value in xs:
        x, y = place(x_value, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.0f}" text-anchor="middle">{short(x_value)}</text>')
    middle = (LEFT + WIDE - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HIGH - 12}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text transform="translate(14 {HIGH / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(up)}</text>')
    for n, (name, line) in enumerate(lines.items()):
        colour = COLOURS[n % len(COLOURS)]
        points = [place(x, y) for x, y in sorted(line)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        y = TOP + 10 + 20 * n
        parts.append(f'<text x="{WIDE - RIGHT + 12}" y="{y}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def bars(title: str, unit: str, rows: Sequence[tuple[str, str, float]]) -> str:
    """An SVG of a bar for each (name, what is said under it, value), the first in another colour."""
    most = max(value for _, _, value in rows)
    side, wide, step = 320, 870, 38
    high = TOP + step * len(rows) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{high}" fill="white"/>',
        f'<text x="10" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for n, (name, under, value) in enumerate(rows):
        y, long = TOP + step * n, max(1.0, value / most * (wide - side - 130))
        colour = COLOURS[0] if n == 0 else "#8b949e"
        parts.append(f'<text x="{side - 10}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<text x="{side - 10}" y="{y + 26}" text-anchor="end" font-size="9" fill="#57606a">{escape(under)}</text>'
        )
        parts.append(f'<rect x="{side}" y="{y + 2}" width="{long:.1f}" height="22" fill="{colour}"/>')
        parts.append(f'<text x="{side + long + 6:.1f}" y="{y + 18}">{value:,.0f} {escape(unit)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _round(value: float) -> float:
    """The next number above whose quarters are short."""
    size = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return float(next(step * size for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * size >= value))
