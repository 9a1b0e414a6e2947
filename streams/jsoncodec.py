"""The codec that an event class declares: plain rows of flat JSON by kernels, all else record by record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from headrace.streams.batch import Column, Fields
from headrace.streams.codecs import CODECS, Codec, Decoded, MsgspecCodec, empty_key
from headrace.streams.errors import DeclarationError, InvalidEvent
from headrace.streams.event import Event
from headrace.streams.jsoncolumns import JsonColumns, Plain
from headrace.streams.spans import Spans
from numpy.typing import NDArray


class JsonCodec(MsgspecCodec):
    """Flat JSON: what `JsonColumns` takes by kernels, and the other rows, each by itself, by msgspec.

    odd: how many of the latter there were
    """

    def __init__(self, event: type[Event], keyless: bool = True) -> None:
        super().__init__(event, keyless)
        self._columns = JsonColumns(event, keyless)
        self.odd = 0
        self._keyless_event = empty_key(event.contract.key)

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], published: NDArray[np.int64]
    ) -> Decoded:
        values, keys = Spans.of(values), Spans.of(keys)
        plain = self._columns.decode(values, keys, published)
        if plain.ok.all():
            return Decoded(np.arange(len(values)), Fields(plain.columns, plain.texts), plain.time, [])
        refused = [(row, self._keyless_event) for row in np.flatnonzero(plain.keyless).tolist()]
        odd = np.flatnonzero(~(plain.ok | plain.keyless))
        if not len(odd):
            return _some(plain, refused)
        self.odd += len(odd)
        found = super().decode(list(values.take(odd)), list(keys.take(odd)), published[odd])
        refused = sorted(refused + [(int(odd[i]), error) for i, error in found.refused], key=lambda pair: pair[0])
        if not len(found.rows):
            return _some(plain, refused)
        return _merged(plain, Decoded(odd[found.rows], found.fields, found.time, refused))


def _some(plain: Plain, refused: list[tuple[int, InvalidEvent]]) -> Decoded:
    """The plain rows alone."""
    rows = np.flatnonzero(plain.ok)
    columns: dict[str, Column] = {name: column[rows] for name, column in plain.columns.items()}
    texts = {name: spans.take(rows) for name, spans in plain.texts.items()}
    return Decoded(rows, Fields(columns, texts), plain.time[rows], refused)


def _merged(plain: Plain, others: Decoded) -> Decoded:
    """The plain rows and the others, in order."""
    taken = plain.ok.copy()
    taken[others.rows] = True
    rows = np.flatnonzero(taken)
    place = np.arange(len(taken))
    place[others.rows] = len(taken) + np.arange(len(others.rows))
    place = place[rows]
    columns: dict[str, Column] = {
        name: np.concatenate([column, others.fields[name]])[place] for name, column in plain.columns.items()
    }
    texts: dict[str, Spans] = {}
    for name, all_spans in plain.texts.items():
        # What stands for a row that was not taken is no place of the buffer.
        spans = Spans(all_spans.data, *(np.where(plain.ok, part, -1) for part in (all_spans.start, all_spans.length)))
        theirs: list[str | None] = others.fields[name].tolist()
        if all(text is None or _bare(text) for text in theirs):
            beside = Spans.of([None if text is None else text.encode() for text in theirs])
            texts[name] = Spans.joined([spans, beside]).take(place)
        else:
            whole = np.empty(len(taken) + len(theirs), np.object_)
            whole[: len(taken)] = [None if text is None else text.decode() for text in spans]
            whole[len(taken) :] = theirs
            columns[name] = whole[place]
    time = np.concatenate([plain.time, others.time])[place]
    return Decoded(rows, Fields(columns, texts), time, others.refused)


def _bare(text: str) -> bool:
    """Whether a text is in JSON as it is: who has it as a span writes it so."""
    return not any(character < " " or character in '"\\' for character in text)


def codec(event: type[Event], keyless: bool = True) -> Codec:
    """The codec that an event class declares. keyless: as `MsgspecCodec`.

    Raises DeclarationError for an unknown one.
    """
    if event.contract.codec not in CODECS:
        known = ", ".join(CODECS)
        raise DeclarationError(f"event {event.__name__}: codec={event.contract.codec!r} is not one of {known}")
    return JsonCodec(event, keyless) if JsonColumns.takes(event) else MsgspecCodec(event, keyless)
