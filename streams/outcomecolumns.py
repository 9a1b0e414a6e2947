"""Outcomes as columns: rows of JSON as `outcomes.Settle` writes them by a kernel, and odd ones by msgspec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import msgspec
import numpy as np
from headrace.streams import jsonkernels as kernels
from headrace.streams.batch import Fields, Rows
from headrace.streams.codecs import MAX_INTEGER, NO_JSON, Decoded
from headrace.streams.durations import micros
from headrace.streams.errors import InvalidEvent
from headrace.streams.kernels import given
from headrace.streams.outcomes import Settled
from headrace.streams.spans import Spans
from numpy.typing import NDArray

_settled = msgspec.json.Decoder(Settled).decode

AT, MATURES, WATERMARK, OUTCOME, SCORE = range(5)
"""Cells of every outcome; those of the baselines and of the features follow."""

_UNUSED = 2
"""Cells in which the kernel notes what nobody reads: texts take two."""


@dataclass(slots=True, eq=False)
class Outcomes:
    """Outcomes as columns of length n.

    columns: how they were read
    values:  the outcomes' own bytes
    cells:   int64[n, cells], times in microseconds; floats by their bits
    odd:     bool[n], of whose features or baselines the cells do not tell all: see `settled`
    """

    columns: OutcomeColumns
    values: Spans
    cells: NDArray[np.int64]
    odd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, at: slice) -> Outcomes:
        return Outcomes(self.columns, self.values[at], self.cells[at], self.odd[at])

    def take(self, rows: NDArray[np.int64]) -> Outcomes:
        return Outcomes(self.columns, self.values.take(rows), self.cells[rows], self.odd[rows])

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """All of them, one after the other. They were read alike."""
        values = Spans.joined([part.values for part in parts])
        cells, odd = np.concatenate([part.cells for part in parts]), np.concatenate([part.odd for part in parts])
        return cls(parts[0].columns, values, cells, odd)

    @property
    def at(self) -> NDArray[np.int64]:
        """int64[n], microseconds, of the predictions."""
        return self.cells[:, AT]

    @property
    def matures(self) -> NDArray[np.int64]:
        return self.cells[:, MATURES]

    @property
    def watermark(self) -> NDArray[np.int64]:
        return self.cells[:, WATERMARK]

    @property
    def outcome(self) -> NDArray[np.bool_]:
        truth: NDArray[np.bool_] = self.cells[:, OUTCOME] != 0
        return truth

    @property
    def score(self) -> NDArray[np.float64]:
        return self.cells[:, SCORE].view(np.float64)

    @property
    def baselines(self) -> NDArray[np.float64]:
        """float64[n, baselines], NaN where one is missing."""
        return self.cells[:, SCORE + 1 : SCORE + 1 + len(self.columns.baselines)].view(np.float64)

    @property
    def features(self) -> NDArray[np.float64]:
        """float64[n, features], NaN where one is missing."""
        return self.cells[:, SCORE + 1 + len(self.columns.baselines) :].view(np.float64)

    def settled(self, row: int) -> Settled:
        """One of them whole."""
        return _settled(self.values[row] or b"")


class OutcomeColumns:
    """Reads outcomes of a model.

    features:  (name, is it a text?) of the features, in the order in which they stand in an outcome
    baselines: their names
    names:     the features that are numbers; texts: the others

    Outcomes that have others, or these otherwise, are read too, one by one.
    """

    def __init__(self, features: Sequence[tuple[str, bool]] = (), baselines: Sequence[str] = ()) -> None:
        self.names = tuple(name for name, text in features if not text)
        self.baselines = tuple(baselines)
        self.texts = frozenset(name for name, text in features if text)
        first = _UNUSED + SCORE + 1
        judged = {name: first + n for n, name in enumerate(self.baselines)}
        shown = {name: first + len(judged) + n for n, name in enumerate(self.names)}
        self._width = first + len(judged) + len(shown)
        time, text, number = kernels.TIME, kernels.TEXT, kernels.FLOAT
        # (what stands before it, kind, cell, may it be null?) of each value
        laid: list[tuple[str, int, int, bool]] = [
            ('{"id":', text, 0, False),
            (',"key":', text, 0, False),
            (',"at":', time, _UNUSED + AT, False),
            (',"known":', time, 0, False),
            (',"matures":', time, _UNUSED + MATURES, False),
            (',"watermark":', time, _UNUSED + WATERMARK, False),
            (',"outcome":', kernels.BOOL, _UNUSED + OUTCOME, False),
            (',"score":', number, _UNUSED + SCORE, False),
        ]
        before = ',"baselines":{'
        for name, cell in judged.items():
            laid.append((f"{before}{_quoted(name)}:", number, cell, False))
            before = ","
        laid.append((("}" if judged else before + "}") + ',"version":', text, 0, False))
        before = ',"features":{'
        for name, is_text in features:
            laid.append((f"{before}{_quoted(name)}:", text if is_text else number, shown.get(name, 0), True))
            before = ","
        literals = [one.encode() for one, *_ in laid] + [b"}}" if features else before.encode() + b"}}"]
        padded = [one + bytes(-len(one) % 8) for one in literals]
        self._layout = kernels.Layout(
            words=np.array(np.frombuffer(b"".join(padded), "<u8"), np.uint64),
            word=_int64([0, *accumulate(len(one) // 8 for one in padded)][:-1]),
            size=_int64([len(one) for one in literals]),
            spare=np.array([-len(one) % 8 * 8 for one in literals], np.uint64),
        )
        kinds, none = [kind for _, kind, _, _ in laid], _int64([0] * len(laid))
        limits = {kernels.MAX_BYTES: 0, kernels.MAX_INTEGER: MAX_INTEGER, kernels.IGNORES: 0}
        self._schema = kernels.Schema(
            names=np.zeros(1, np.uint64),
            name=none,
            size=none,
            spare=np.zeros(len(laid), np.uint64),
            kind=_int64(kinds),
            floated=_int64([kind == number for kind in kinds]),
            optional=_int64([null for *_, null in laid]),
            absent=none,
            cell=_int64([cell for _, _, cell, _ in laid]),
            seen=none,
            limits=_int64([limits.get(place, 0) for place in range(kernels.IGNORES + 1)]),
        )

    def read(self, values: Spans) -> Outcomes:
        """Outcomes that were read before. Raises msgspec.DecodeError where one is none."""
        found, refused = self.sift(values)
        if refused:
            raise msgspec.DecodeError(refused[0][1].reason)
        return found

    def sift(self, values: Spans) -> tuple[Outcomes, list[tuple[int, InvalidEvent]]]:
        """All of them, and (row, reason) of those that are no outcomes; of these the columns tell nothing."""
        n = len(values)
        cells = np.empty((self._width, n), np.int64)
        ok, odd = np.empty(n, np.bool_), np.zeros(n, np.bool_)
        strings = kernels.Strings(*(given(part) for part in (values.data, values.start, values.length)))
        out = kernels.Cells(ok, np.empty(n, np.int64), cells, cells.view(np.float64))
        kernels.decode_laid(strings, self._layout, self._schema, out)
        found = Outcomes(self, values, np.ascontiguousarray(cells[_UNUSED:].T), odd)
        refused = []
        for row in np.flatnonzero(~ok).tolist():
            try:
                found.odd[row] = not self._fill(found.cells[row], _settled(values[row] or b""))
            except NO_JSON as error:
                refused.append((row, InvalidEvent(f"it is no outcome ({error})")))
            except TypeError:
                refused.append((row, InvalidEvent("it is no outcome (a time of it has no zone)")))
        return found, refused

    def of(self, rows: Rows) -> Outcomes:
        """The outcomes of rows that `OutcomeCodec` decoded."""
        values = rows.texts("value")
        assert values is not None, "rows of outcomes"
        return Outcomes(self, values, rows.fields["cells"], rows.fields["odd"])  # type: ignore[arg-type]

    def _fill(self, cells: NDArray[np.int64], settled: Settled) -> bool:
        """Write an outcome's cells; whether they tell all of it. Raises TypeError where a time has no zone."""
        floats = cells.view(np.float64)
        cells[[AT, MATURES, WATERMARK]] = [micros(t) for t in (settled.at, settled.matures, settled.watermark)]
        cells[OUTCOME], floats[SCORE] = settled.outcome, settled.score
        numbers = {n: v for n, v in settled.features.items() if n not in self.texts or isinstance(v, float)}
        floats[SCORE + 1 :] = [
            *(settled.baselines.get(name, np.nan) for name in self.baselines),
            *(v if isinstance(v := numbers.get(name), float) else np.nan for name in self.names),
        ]
        # Sums are made in the order in which features stand: another order may give other bits.
        order = [name for name in self.names if name in numbers]
        plain = order == list(numbers) and not any(isinstance(v, str) for v in numbers.values())
        return plain and settled.baselines.keys() <= set(self.baselines)


class OutcomeCodec:
    """Reads `outcomes.<model>` as a task's input, in the order of the log, without what is no outcome."""

    def __init__(self, columns: OutcomeColumns | None = None) -> None:
        self._columns = columns or OutcomeColumns()

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], published: NDArray[np.int64]
    ) -> Decoded:
        """The field `cells` holds the rows of `Outcomes.cells`, `odd` theirs, and the text `value` their bytes."""
        found, refused = self._columns.sift(Spans.of(values))
        rows = np.delete(np.arange(len(found)), [row for row, _ in refused])
        kept = found.take(rows) if refused else found
        fields = Fields({"cells": kept.cells, "odd": kept.odd}, {"value": kept.values})
        return Decoded(rows, fields, np.zeros(len(rows), np.int64), refused)


def _quoted(name: str) -> str:
    return msgspec.json.encode(name).decode()


def _int64(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)
