"""Lines in and out: a file to a topic, a topic to a terminal or a pipe."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from headrace.client import CHUNK, Connection
from headrace.errors import FrontError
from headrace.program import load
from headrace.running import current
from headrace.streams.codecs import MAX_EVENT_BYTES
from headrace.streams.errors import InvalidEvent
from headrace.streams.event import Event
from headrace.streams.publisher import Row, encode
from headrace.streams.subscription import Message, headers_of, parse_start
from headrace.streams.topics import derived_topic, kind_of

MOST_TOLD = 20
"""Bad lines told one by one. A file of another format would fill the terminal."""
WIDEST = 200
"""Columns of a table on a terminal that is wider."""


def publish_lines(
    topic: str, file: str, *, broker: str | None, program: str | None, key: str | None, strict: bool, say: Console
) -> bool:
    """Publish the lines of a file; False where some were bad.

    Raises FrontError where the file cannot be read or nothing tells the key field, and with `strict` at the first bad
    line; UnknownTopic; DerivedTopic where a program writes the topic.
    """
    event, key_field = _contract(topic, broker, program, key)
    bad, doubtful, doubt = 0, 0, ""
    with contextlib.ExitStack() as open_ones:
        lines, size = _open(file, open_ones)
        connection = open_ones.enter_context(contextlib.closing(Connection(broker)))
        progress = open_ones.enter_context(_progress(say, size))
        if event is None:
            _check(topic, key_field, connection)
        task = progress.add_task(f"publishing to {topic}", total=size, events=0)
        published = 0

        def rows() -> Iterator[Row]:
            nonlocal bad, published, doubtful, doubt
            for number, line in enumerate(iter(lambda: lines.readline(MAX_EVENT_BYTES + 2), b""), 1):
                progress.advance(task, len(line))
                if not line.strip():
                    continue
                try:
                    row = encode(_text(line), event, key_field)
                    if row.doubt:
                        doubtful += 1
                        doubt = doubt or f"{file}, line {number}: {row.doubt}"
                    yield row
                except InvalidEvent as error:
                    bad += 1
                    sentence = f"{file}, line {number}: {error}"
                    if strict:
                        raise FrontError(sentence) from None
                    if bad <= MOST_TOLD:
                        say.print(sentence, markup=False)
                    while not line.endswith(b"\n") and len(line) > MAX_EVENT_BYTES:
                        line = lines.readline(MAX_EVENT_BYTES)  # the rest of an endless line
                        progress.advance(task, len(line))
                    continue
                published += 1
                if published % CHUNK == 0:
                    progress.update(task, events=published)

        connection.publish_rows(topic, rows())
        progress.update(task, events=published, completed=size)
    if bad > MOST_TOLD:
        say.print(f"and {_count(bad - MOST_TOLD, 'more bad line')}")
    if doubtful:
        more = f" (and {_count(doubtful - 1, 'more line')} like it)" if doubtful > 1 else ""
        say.print(f"{doubt}{more}", markup=False)
    left = f"; {_count(bad, 'bad line')} {'was' if bad == 1 else 'were'} left out" if bad else ""
    say.print(f"published {_count(published, 'event')} to {topic}{left}")
    return bad == 0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _text(line: bytes) -> str:
    """Raises InvalidEvent where the line is not UTF-8."""
    try:
        return line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        raise InvalidEvent(f"the line is not UTF-8: {error.reason} at byte {error.start}") from None


def _contract(
    topic: str, broker: str | None, program: str | None, key: str | None
) -> tuple[type[Event] | None, str | None]:
    """The contract of the topic, by the program named, or by that of the running stack if its broker is meant."""
    running = current()
    if program is None and running is not None and broker in (None, running.broker):
        program = running.program
    if program is None:
        return None, key
    found = {e.contract.topic: e for e in load(program).events}
    return found.get(topic), key


def _check(topic: str, key: str | None, connection: Connection) -> None:
    """That lines of a topic without contract can be published as they are."""
    partitions = connection.partitions(topic)
    if kind_of(topic) != "event":
        raise derived_topic(topic, connection.topics())
    if key is None and partitions > 1:
        raise FrontError(
            f"nothing tells here which field is the key of {topic}, and without it events come to any of its "
            f"{partitions} partitions, where workers reject them: name the program (--program shop.py) or the field "
            f"(--key FIELD)"
        )


def _open(file: str, open_ones: contextlib.ExitStack) -> tuple[BinaryIO, int | None]:
    if file == "-":
        return sys.stdin.buffer, None
    try:
        return open_ones.enter_context(Path(file).open("rb")), os.path.getsize(file)
    except OSError as error:
        raise FrontError(f"{file} cannot be read: {error.strerror}") from None


def _progress(say: Console, size: int | None) -> Progress:
    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    if size is not None:
        columns.append(BarColumn())
        columns.append(TextColumn("{task.percentage:>3.0f}%"))
    columns += [TextColumn("{task.fields[events]:,} events"), TimeElapsedColumn()]
    return Progress(*columns, console=say, transient=True, disable=not say.is_terminal)


def print_topic(
    topic: str, since: str, *, most: int | None, timeout: float | None, broker: str | None, say: Console
) -> None:
    """Print the records of a topic until the bounds given are reached."""
    start = parse_start(since)
    terminal = sys.stdout.isatty()
    if terminal and start == "latest":
        say.print(f"waiting for new records of {topic}; --from earliest shows those that are there")
    shown = 0
    with contextlib.closing(Connection(broker)) as connection:
        for message in connection.subscribe(topic, start, timeout=timeout):
            if terminal:
                if shown == 0:
                    print(f"{'published':<23}  {'part:offset':<14}  {'key':<16}  value")
                print(_row(message, min(WIDEST, shutil.get_terminal_size().columns)))
            else:
                sys.stdout.buffer.write(to_line(message))
                sys.stdout.buffer.flush()
            shown += 1
            if shown == most:
                return


def to_line(message: Message) -> bytes:
    """A record as a line of NDJSON. A value that is no JSON is text, with U+FFFD for what is not UTF-8."""
    line = message.line
    return (
        msgspec.json.encode(
            {
                "topic": message.topic,
                "partition": message.partition,
                "offset": message.offset,
                "key": message.key,
                "timestamp": message.timestamp,
                **({"headers": headers_of(message)} if message.headers else {}),
                "value": (message.data or b"").decode(errors="replace") if line is None else line,
            }
        )
        + b"\n"
    )


def _row(message: Message, width: int) -> str:
    """A record as a row of a table, cut to so many columns."""
    text = "" if message.data is None else message.data.decode(errors="replace")
    value = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:width])
    at = f"{message.timestamp:%Y-%m-%d %H:%M:%S}.{message.timestamp.microsecond // 1000:03}"
    place = f"{message.partition}:{message.offset}"
    row = f"{at}  {place:<14}  {(message.key or '')[:16]:<16}  {value}"
    return row if len(row) <= width else f"{row[: width - 1]}…"
