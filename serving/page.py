"""The live page at the gateway's root, with NiceGUI: everything it needs comes in the wheel."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from fastapi import FastAPI
from headrace.serving import crew, diagram, style
from headrace.serving.board import Board, Record, Refusal
from headrace.serving.diagram import count, held, rate
from headrace.serving.gateway import Settings
from headrace.streams.durations import clock
from nicegui import ui

METRICS = {"log_loss": "log loss", "roc_auc": "ROC AUC", "average_precision": "average precision"}
LOWER_IS_BETTER = frozenset({"log_loss"})
POINTS = 300
"""Points of a line. A chart of a few hundred pixels shows no more."""
ROWS = 30
"""Rows of a table: what fits into a tall window."""
COLOURS = ("#3b82f6", "#94a3b8", "#f59e0b", "#14b8a6", "#a855f7", "#ef4444")
"""The model's, then its baselines'."""


def mount(app: FastAPI, settings: Settings) -> None:
    """Serve the page at the root of the gateway. Once in a process: NiceGUI keeps its pages in one place."""
    board: Board = app.state.gateway.board

    @ui.page("/", title=f"{settings.app} · Headrace")
    def show() -> None:
        Page(settings, board).build()

    ui.run_with(
        app,
        dark=None,
        favicon=FAVICON,
        language="en-US",
        show_welcome_message=False,
        tailwind=False,
        reconnect_timeout=10,
    )


FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#2563eb"/>'
    '<path d="M5 12c4-4 7 4 11 0s7 4 11 0M5 20c4-4 7 4 11 0s7 4 11 0" fill="none" stroke="#fff" stroke-width="2.6" '
    'stroke-linecap="round"/></svg>'
)


class Page:
    """The page of one visitor. It reads the shared board once a second."""

    def __init__(self, settings: Settings, board: Board) -> None:
        self._settings = settings
        self._board = board
        self._metric = "log_loss"
        self._model = ""
        self._drawn: object = None
        self._numbers: dict[str, ui.label] = {}

    def build(self) -> None:
        ui.add_css(style.STYLE)
        ui.colors(primary="#2563eb")
        self._dark = ui.dark_mode(value=None)
        self._build_bar()
        with ui.element("div").classes("board grid"):  # NiceGUI puts the whole page into a main
            with _section("figures", "grid wide"):
                for name in ("events", "predictions", "outcomes", "late", "rejected", "lag"):
                    with ui.column().classes("card tile two"):
                        ui.label(name).classes("title")
                        self._numbers[name] = ui.label("-").classes("number").mark(f"number-{name}")
            with _section("pipeline", "card wide"):
                self._diagram = _scrolling("the graph").classes("scrolls")
            with _section("workers", "card wide slim"):
                _heading("workers")
                self._crew = ui.html("", sanitize=False)
            self._build_quality()
            with _section("predictions", "card tall five"):
                _heading("predictions as they come")
                self._predictions = _scrolling("predictions, the newest first")
            with ui.element("div").classes("card tall three"):
                with _section("drift alarms", "half"):
                    _heading("drift alarms")
                    self._alarms = _scrolling("drift alarms, the newest first")
                with _section("late and rejected", "half"):
                    _heading("late and rejected")
                    self._refusals = _scrolling("late and rejected events, the newest first")
        self.update()
        ui.timer(1.0, self.update)

    def _build_bar(self) -> None:
        with ui.element("header").classes("bar line").props("role=banner"):
            ui.html(FAVICON, sanitize=False).classes("icon").props("aria-hidden=true")
            ui.html(html.escape(self._settings.app), tag="h1", sanitize=False).classes("mark")
            self._state = ui.label("").props("role=status")
            ui.space()
            with ui.element("nav").classes("line").props("aria-label=gateway"):
                ui.label(str(self._settings.broker)).classes("note aside")
                for name in ("topics", "workers", "metrics", "health", "openapi.json"):
                    ui.link(name, f"/{name}").classes("note")
            self._switch = ui.button(icon="contrast", on_click=self._switch_theme)
            self._switch.props('flat round dense aria-label="light or dark"').classes("dim")

    def _build_quality(self) -> None:
        with _section("quality", "card tall four"):
            with ui.element("div").classes("line"):
                _heading("quality")
                ui.space()
                self._models = ui.select([], on_change=self._choose_model)
                self._models.props("dense borderless options-dense aria-label=model")
                self._models.set_visibility(False)
                toggle = ui.toggle(METRICS, value=self._metric, on_change=self._choose_metric)
                toggle.props("dense no-caps unelevated size=sm padding='2px 8px' aria-label=metric")
            self._latest = ui.html("", sanitize=False)
            self._chart = ui.echart(_chart([], self._metric), renderer="svg").classes("fills")

    def _switch_theme(self) -> None:
        self._dark.value = not self._dark.value

    def _choose_metric(self, event: Any) -> None:  # NiceGUI's event
        self._metric = str(event.value)
        self._drawn = None
        self.update()

    def _choose_model(self, event: Any) -> None:  # NiceGUI's event
        self._model = str(event.value)
        self._drawn = None
        self.update()

    def update(self) -> None:
        sight = self._board.sight
        self._state.set_text(sight.trouble or "live")
        self._state.classes(replace="note state warn" if sight.trouble else "note state good")
        for name, text in self._figures().items():
            self._numbers[name].set_text(text)
        self._diagram.set_content(diagram.draw(self._board.topics, self._board.processors, sight.flow, sight.counts))
        self._crew.set_content(crew.draw(self._board.crew()))
        self._predictions.set_content(predictions_table(list(sight.predictions)[-ROWS:][::-1]))
        self._alarms.set_content(alarms_list(list(sight.alarms)[-ROWS:][::-1]))
        self._refusals.set_content(refusals_list(reversed(sight.refusals)))
        self._update_quality()

    def _figures(self) -> dict[str, str]:
        sight = self._board.sight
        flows = {
            kind: [t for t in sight.flow.topics if t.kind == kind] for kind in ("event", "predictions", "outcomes")
        }
        lags = [p.lag for p in sight.flow.processors if p.lag is not None]
        return {
            "events": rate(sum(t.rate for t in flows["event"])),
            "predictions": rate(sum(t.rate for t in flows["predictions"])),
            "outcomes": held(sum(t.records for t in flows["outcomes"]), all(t.exact for t in flows["outcomes"])),
            "late": count(self._counted("late")),
            "rejected": count(self._counted("rejected")),
            "lag": count(max(lags)) if lags else "-",
        }

    def _counted(self, kind: str) -> int:
        return sum(n for t, n in self._board.sight.counts.items() if t.endswith(f".{kind}"))

    def _update_quality(self) -> None:
        quality = self._board.sight.quality
        if not quality:
            self._latest.set_content('<div class="note">no outcome is known yet</div>')
            return
        if self._model not in quality:
            self._model = next(iter(quality))
        if len(quality) > 1:
            self._models.set_options(sorted(quality), value=self._model)
            self._models.set_visibility(True)
        records = quality[self._model]
        state = (self._model, self._metric, len(records), records[-1].get("at"))
        if state == self._drawn:
            return
        self._drawn = state
        self._latest.set_content(_latest(records[-1], self._metric, self._model))
        self._chart.options.clear()
        self._chart.options.update(_chart(records, self._metric))
        self._chart.update()


def _section(name: str, classes: str) -> ui.element:
    return ui.element("section").classes(classes).props(f'aria-label="{name}"')


def _heading(text: str) -> None:
    ui.html(text, tag="h2", sanitize=False).classes("title")


def _scrolling(name: str) -> ui.html:
    """Content that may be larger than its place; the keyboard scrolls it too."""
    return ui.html("", sanitize=False).classes("fills").props(f'tabindex=0 role=group aria-label="{name}"')


def series_of(records: Sequence[Record], metric: str) -> dict[str, list[list[object]]]:
    """The lines of a chart: the model's (under the empty name) and each baseline's, as [time, value]."""
    names = [k[: -len(metric)].rstrip("_") for k in (records[-1] if records else ()) if k.endswith(metric)]
    step = max(1, len(records) // POINTS)
    kept = list(records[::step])
    if records and kept[-1] is not records[-1]:
        kept.append(records[-1])
    lines: dict[str, list[list[object]]] = {}
    for name in sorted(names):
        key = f"{name}_{metric}" if name else metric
        lines[name] = [[r.get("at"), r[key]] for r in kept if isinstance(r.get(key), int | float)]
    return lines


def _chart(records: Sequence[Record], metric: str) -> dict[str, Any]:
    lines = series_of(records, metric)
    grey, faint = "#8391a7", "rgba(131, 145, 167, 0.22)"
    axis = {
        "axisLabel": {"color": grey, "fontSize": 11, "hideOverlap": True},
        "axisLine": {"lineStyle": {"color": faint}},
        "splitLine": {"lineStyle": {"color": faint}},
    }
    return {
        "animation": False,
        "aria": {"enabled": True},
        "color": list(COLOURS),
        "grid": {"left": 8, "right": 14, "top": 14, "bottom": 30, "containLabel": True},
        "legend": {"bottom": 0, "textStyle": {"color": grey}, "icon": "roundRect", "itemHeight": 4, "itemWidth": 16},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {"type": "time", "splitNumber": 4, **axis, "splitLine": {"show": False}},
        "yAxis": {"type": "value", "scale": True, "splitNumber": 4, **axis},
        "series": [
            {
                "type": "line",
                "name": name or "model",
                "data": points,
                "showSymbol": len(points) < 3,
                "z": 3 if not name else 2,
                "lineStyle": {"width": 2.4} if not name else {"width": 1.4, "type": "dashed"},
            }
            for name, points in lines.items()
        ],
    }


def _latest(record: Record, metric: str, model: str) -> str:
    key_of = {k[: -len(metric)].rstrip("_"): k for k in record if k.endswith(metric)}
    own = record.get(metric)
    parts = [f"<b>{escape(model)}</b>"]
    if isinstance(own, int | float):
        parts.append(f'<span class="figure"><b>{own:.4f}</b></span>')
    for name, key in sorted(key_of.items()):
        if name and isinstance(record[key], int | float):
            better = isinstance(own, int | float) and (own < record[key]) == (metric in LOWER_IS_BETTER)
            sign = "good" if better else "dim"
            told = ' title="the model is better"' if better else ""
            parts.append(f'<span class="{sign}"{told}>{escape(name)} {record[key]:.4f}</span>')
    outcomes = record.get("outcomes")
    if isinstance(outcomes, int):
        parts.append(f'<span class="dim">{count(outcomes)} outcomes</span>')
    return f'<div class="note" style="display: flex; flex-wrap: wrap; gap: 2px 12px">{"".join(parts)}</div>'


def predictions_table(records: Iterable[Record]) -> str:
    """The records as a table, newest first as they are given."""
    rows = []
    for r in records:
        score, latency = r.get("score"), r.get("latency_ms")
        cells = [
            f'<td class="dim">{escape(_moment(r.get("at")))}</td>',
            f"<td>{escape(r.get('key'))}</td>",
            f'<td class="num"><b>{score:.4f}</b></td>' if isinstance(score, int | float) else "<td></td>",
            f"<td>{escape(r.get('version'))}</td>",
            f'<td class="dim">{escape(r.get("route"))}</td>',
            f'<td class="num dim">{latency:,.1f}</td>' if isinstance(latency, int | float) else "<td></td>",
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    if not rows:
        return '<div class="note">none yet</div>'
    head = (
        '<th scope="col">event time</th><th scope="col">key</th><th scope="col" class="num">score</th>'
        '<th scope="col">version</th><th scope="col">route</th>'
        '<th scope="col" class="num" title="from publish to prediction">ms</th>'
    )
    return f'<table class="list"><tr>{head}</tr>{"".join(rows)}</table>'


def alarms_list(records: Iterable[Record]) -> str:
    """The alarms, newest first as they are given."""
    parts = []
    for r in records:
        value = r.get("value")
        figure = f" = {value:.4g}" if isinstance(value, int | float) else ""
        parts.append(
            f'<div class="alarm"><b>{escape(r.get("model"))}</b> {escape(r.get("detector"))} on '
            f'{escape(r.get("on"))}{figure}<br><span class="dim">'
            f"{escape(r.get('message') or _moment(r.get('at')))}</span></div>"
        )
    return "".join(parts) or '<div class="note">none</div>'


def refusals_list(refusals: Iterable[Refusal]) -> str:
    """Late and rejected events, newest first as they are given; the same said again is told once, with how often."""
    parts = []
    for (topic, kind, reason), same in groupby(refusals, key=lambda r: (r.topic, r.kind, r.reason)):
        seen = list(same)
        times = f" {len(seen)} times" if len(seen) > 1 else ""
        parts.append(
            f'<div class="refusal"><b>{escape(topic)}</b> {escape(kind)}{times} '
            f'<span class="dim">{escape(seen[0].at)}</span><br><span class="dim">{escape(reason)}</span></div>'
        )
    return "".join(parts[:ROWS]) or '<div class="note">none</div>'


def escape(value: object) -> str:
    """Text of a record, which anyone may have published, safe within HTML and of bounded length."""
    text = "" if value is None else str(value)
    return html.escape(text if len(text) <= 160 else text[:159] + "…")


def _moment(value: object) -> str:
    """A time as people read it: whatever its form in the record."""
    if isinstance(value, int | float):
        return f"{clock(value):%Y-%m-%d %H:%M:%S}"
    return str(value or "").replace("T", " ").replace("Z", "")[:19]
