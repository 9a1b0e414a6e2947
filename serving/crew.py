"""The workers and their tasks as the page shows them: a chip for each worker, a cell for each task."""

from __future__ import annotations

from html import escape
from itertools import groupby

from headrace.serving.diagram import count
from headrace.streams.roster import Crew, Place, Seen

MOST_CHIPS = 24
"""Workers shown one by one; of more only the number is told. Gone ones go first."""
MOST_CELLS = 64
"""Tasks of a processor shown one by one; of more those that are not well, and how many run."""

STYLE = """
.crew { display: flex; flex-wrap: wrap; align-items: center; gap: 5px 16px; font-size: 12.5px; }
.crew .who, .crew .what { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; margin: 0; padding: 0;
  list-style: none; }
.crew .what { gap: 3px; } .crew .what b { margin-right: 4px; font-weight: 600; }
.chip { border: 1px solid var(--line); border-radius: 11px; padding: 0 9px 0 3px; line-height: 20px;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
.chip i { font-style: normal; font-weight: 700; font-size: 11px; background: var(--accent-soft); color: var(--accent);
  border-radius: 8px; padding: 1px 6px; margin-right: 5px; }
.chip.gone { border-style: dashed; color: var(--dim); }
.chip.gone i { background: var(--warn-soft); color: var(--warn); }
.cell { min-width: 24px; padding: 0 5px; line-height: 20px; text-align: center; border-radius: 5px; font-size: 11.5px;
  border: 1px solid var(--line); background: var(--node); font-variant-numeric: tabular-nums; white-space: nowrap; }
.cell small { color: var(--dim); margin-left: 3px; font-size: 10.5px; }
.cell.running { border-color: color-mix(in srgb, var(--good) 55%, var(--line));
  background: color-mix(in srgb, var(--good) 13%, var(--card)); }
.cell.starting, .cell.stopping { border-style: dashed; color: var(--dim); }
.cell.restoring { border-color: var(--accent);
  background: linear-gradient(90deg, color-mix(in srgb, var(--accent) 32%, var(--card)) var(--done), var(--node) 0); }
.cell.unowned { border-color: var(--warn); background: var(--warn-soft); color: var(--warn); font-weight: 700; }
@media (max-width: 600px) { .slim { flex-wrap: wrap; } .chip { white-space: normal; } }
"""


def draw(crew: Crew) -> str:
    """The workers, their tasks, and what is wrong."""
    letters = {w.status.worker: letter(n) for n, w in enumerate(crew.alive)}
    parts = [_who(crew, letters)]
    for processor, places in groupby(crew.places, key=lambda p: p.processor):
        parts.append(_what(processor, list(places), letters if len(letters) > 1 else {}))
    trouble = crew.trouble()
    if trouble:
        parts.append(f'<span class="warn">{escape(trouble)}</span>')
    return f'<div class="crew">{"".join(parts)}</div>'


def letter(number: int) -> str:
    """A short name: the first worker is A.

    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', 'AA')
    """
    name = ""
    while number >= 0:
        name = chr(ord("A") + number % 26) + name
        number = number // 26 - 1
    return name


def _who(crew: Crew, letters: dict[str, str]) -> str:
    shown = sorted(crew.workers, key=lambda w: w.gone)[:MOST_CHIPS]
    chips = [_chip(w, letters.get(w.status.worker, "")) for w in shown]
    more = len(crew.workers) - len(shown)
    if more:
        chips.append(f'<li class="dim">and {count(more)} more</li>')
    if not chips:
        chips = ['<li class="dim">none</li>']
    return f'<ul class="who" aria-label="workers">{"".join(chips)}</ul>'


def _chip(worker: Seen, name: str) -> str:
    row = worker.row()
    if worker.gone:
        said = f"silent for {_span(worker.silent)}"
    else:
        said = f"{row['tasks']} task{'' if row['tasks'] == 1 else 's'}"
        said += f" · {row['standby']} standby" if row["standby"] else ""
        said += f" · {worker.state}" if worker.state != "running" else ""
        said += f" · {count(float(row['commits'] or 0))} commits"
        for name_of, one in (("aborts", "abort"), ("fenced", "fenced"), ("restarts", "restart")):
            if row[name_of]:
                said += f" · {row[name_of]} {one if row[name_of] == 1 else name_of}"
    told = f"{worker.status.worker}, {worker.state}, {worker.status.guarantee}, generation {worker.status.generation}"
    return (
        f'<li class="chip{" gone" if worker.gone else ""}" title="{_short(told, 200)}"><i>{escape(name) or "gone"}</i>'
        f'{_short(worker.name, 40)} <span class="dim">{escape(said)}</span></li>'
    )


def _what(processor: str, places: list[Place], letters: dict[str, str]) -> str:
    shown, aside = places, ""
    if len(places) > MOST_CELLS:
        shown = [p for p in places if p.state != "running"][:MOST_CELLS]
        running = sum(p.state == "running" for p in places)
        aside = f'<li class="dim">{running} of {len(places)} run</li>'
    cells = "".join(_cell(p, letters.get(p.worker.status.worker, "") if p.worker else "") for p in shown)
    return f'<ul class="what" aria-label="tasks of {escape(processor)}"><b>{escape(processor)}</b>{cells}{aside}</ul>'


def _cell(place: Place, owner: str) -> str:
    said, style = f"{place.processor} {place.partition}: {place.state}", ""
    beside = owner
    if place.restored is not None and place.task is not None:
        done = f"{place.restored:.0%}"
        said += f" {done}, {place.task.restored:,} of {place.task.to_restore:,} changelog records"
        style, beside = f' style="--done: {done}"', f"{owner} {done}".strip()
    if place.worker is not None and place.task is not None:
        t = place.task
        said += f", by {place.worker.name}; lag {t.lag:,}, {t.commits:,} commits, {t.aborts:,} aborts"
        said += f", {t.fenced:,} times fenced" if t.fenced else ""
    else:
        said += ", nobody runs it"
    said += f"; {place.standbys} standby" if place.standbys else ""
    small = f"<small>{escape(beside)}</small>" if beside else ""
    return (
        f'<li class="cell {place.state}"{style} title="{escape(said)}" aria-label="{escape(said)}">'
        f"{place.partition}{small}</li>"
    )


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _short(text: str, most: int) -> str:
    """Text that any client of the log may have written, safe within HTML and of bounded length."""
    return escape(text if len(text) <= most else text[: most - 1] + "…")

