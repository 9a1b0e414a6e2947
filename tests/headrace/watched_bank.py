"""The bank with Faust agents of its own: one that fails on some events, one that takes the whole Faust app down."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

from tests.headrace.bank import app

notes = app.faust.topic("notes", value_type=bytes, value_serializer="raw")


@app.faust.agent(notes)
async def watch(stream: Any) -> None:
    async for note in stream:
        print(f"noted {note.decode()}", flush=True)
        if note == b"wrong":
            raise ValueError("this note is wrong")
        if note == b"fatal":
            await app.faust.crash(RuntimeError("the consumer is gone"))


@app.faust.timer(0.5)
async def tick() -> None:
    print(f"ticked, leader {app.faust.is_leader()}", flush=True)


@app.faust.command()
async def greet() -> None:
    """Says who it is."""
    print(f"this is {app.faust.conf.id}", flush=True)
