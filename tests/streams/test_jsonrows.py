"""Columns as JSON rows."""

from __future__ import annotations

import numpy as np
import orjson
from headrace.streams.jsonrows import Piece, digits, joined, written
from headrace.streams.spans import Spans
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.sampled_from([b"", b"\0"]))
def test_integers_are_written_as_python_writes_them(numbers: list[int], before: bytes) -> None:
    assert list(digits(np.array(numbers, np.int64), before)) == [before + str(n).encode() for n in numbers]


def test_values_that_begin_and_end_alike_are_joined_with_the_others() -> None:
    numbers, texts = digits(np.array([1, 22])), Spans.of([b"a", b""])
    rows = joined({"id": Piece(b'"t-', numbers, b'"'), "text": written(texts), "n": numbers})
    assert [orjson.loads(row or b"") for row in rows] == [
        {"id": "t-1", "text": "a", "n": 1}, {"id": "t-22", "text": "", "n": 22},
    ]  # fmt: skip
    holes = joined({"text": written(Spans.of([None, b"b"]))})
    assert list(holes) == [b'{"text":null}', b'{"text":"b"}']
