"""Outcomes by columns are what msgspec reads of each, to the bit; what is no outcome is refused as msgspec does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from headrace.streams import kernels
from headrace.streams.batch import Rows
from headrace.streams.durations import micros
from headrace.streams.outcomecolumns import OutcomeCodec, OutcomeColumns, Outcomes
from headrace.streams.outcomes import Settled
from headrace.streams.spans import Spans
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
COLUMNS = OutcomeColumns([("odds", False), ("country", True), ("λ", False), ("lines", False)], ["base", "item"])
T0 = datetime(2010, 1, 1, tzinfo=UTC)

floats = st.floats(allow_nan=False, allow_infinity=False)
times = st.integers(0, 10**15).map(lambda micros: T0 + timedelta(microseconds=micros))
texts = st.text(max_size=12)
plain = st.fixed_dictionaries(
    {"odds": floats | st.none(), "country": texts | st.none(), "λ": floats | st.none(), "lines": floats | st.none()}
)
others = st.dictionaries(st.sampled_from(["odds", "country", "λ", "lines", "more"]), floats | texts | st.none())
outcomes = st.builds(
    Settled,
    id=texts, key=texts, at=times, known=times, matures=times, watermark=times, outcome=st.booleans(), score=floats,
    baselines=st.fixed_dictionaries({"base": floats, "item": floats}) | st.dictionaries(texts, floats, max_size=2),
    version=texts, features=plain | others,
)  # fmt: skip


def bits(value: float | None) -> int:
    return int(np.array([np.nan if value is None else value]).view(np.int64)[0])


def expected(one: Settled) -> tuple[list[int], bool]:
    """The cells of an outcome, and whether they do not tell all of it."""
    numbers = {n: v for n, v in one.features.items() if n != "country" or isinstance(v, float)}
    named = [n for n in COLUMNS.names if n in numbers]
    odd = named != list(numbers) or any(isinstance(v, str) for v in numbers.values())
    shown = [v if isinstance(v := one.features.get(n), float) else None for n in COLUMNS.names]
    judged = [one.baselines.get(n) for n in COLUMNS.baselines]
    cells = [micros(one.at), micros(one.matures), micros(one.watermark), int(one.outcome), bits(one.score)]
    return [*cells, *map(bits, [*judged, *shown])], odd or not one.baselines.keys() <= set(COLUMNS.baselines)


def check(values: list[bytes]) -> None:
    """That every row is what msgspec says of it."""
    found, refused = COLUMNS.sift(Spans.of(values))
    reasons = dict(refused)
    for row, value in enumerate(values):
        try:
            one = msgspec.json.decode(value, type=Settled)
            wanted = expected(one)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
            assert row in reasons, value
            continue
        assert row not in reasons, value
        assert (found.cells[row].tolist(), bool(found.odd[row])) == wanted, value
        assert found.settled(row) == one


@given(st.lists(outcomes, max_size=5))
@settings(max_examples=150, deadline=None)
def test_outcomes_as_they_are_written_are_read_to_the_bit(made: list[Settled]) -> None:
    check([msgspec.json.encode(one) for one in made])


@given(outcomes, st.data())
@settings(max_examples=150, deadline=None)
def test_bytes_that_were_changed_are_read_or_refused_as_msgspec_does(one: Settled, data: st.DataObject) -> None:
    value = msgspec.json.encode(one)
    at = data.draw(st.integers(0, len(value)))
    more = data.draw(st.sampled_from([b"", b" ", b'"', b"}", b"0", b"null", b"-", b"\\", b"\xff", b"1e999", b","]))
    cut = data.draw(st.integers(0, 3))
    check([value[:at] + more + value[at + cut :], value, value[:at], json.dumps(json.loads(value)).encode()])


def example(**changed: Any) -> dict[str, Any]:
    one = {
        "id": "orders-0-7", "key": "ann", "at": "2010-01-01T00:00:00Z", "known": "2010-01-02T00:00:00.5Z",
        "matures": "2010-01-31T00:00:00Z", "watermark": "2010-01-31T00:00:00+01:00", "outcome": True, "score": 0.25,
        "baselines": {"base": 0.1, "item": 0.2}, "version": "returns@0",
        "features": {"odds": 1.5, "country": "Peru", "λ": None, "lines": -0.0},
    }  # fmt: skip
    return one | changed


@pytest.mark.parametrize(
    "changed",
    [
        {"at": "2010-01-01T00:00:00"}, {"at": 7}, {"outcome": 1}, {"outcome": None}, {"score": None}, {"score": "0.5"},
        {"score": 1}, {"score": -0}, {"score": 10**400}, {"id": None}, {"baselines": {"base": None, "item": 0.1}},
        {"baselines": {}}, {"features": {}}, {"features": None}, {"features": {"odds": True}}, {"more": 1},
        {"features": {"odds": 1.0, "country": 2.0, "λ": 1.0, "lines": 1.0}},
        {"features": {"lines": 1.0, "odds": 2.0}}, {"features": {"odds": "1", "country": "a", "λ": 1.0, "lines": 1.0}},
        {"features": {"odds": 1, "country": "a\nb", "λ": 12345678901234567890, "lines": 1e-400}},
    ],
)  # fmt: skip
def test_values_of_other_kinds_are_read_or_refused_as_msgspec_does(changed: dict[str, Any]) -> None:
    tight = json.dumps(example(**changed), separators=(",", ":"), ensure_ascii=False).encode()
    check([tight, json.dumps(example(**changed)).encode()])


def test_a_plain_row_is_read_by_the_kernel_and_not_by_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.streams.outcomecolumns._settled", None)
    value = msgspec.json.encode(msgspec.convert(example(), Settled))
    found, refused = COLUMNS.sift(Spans.of([value] * 3))
    assert not refused
    assert not found.odd.any()
    assert found.baselines.tolist() == [[0.1, 0.2]] * 3
    np.testing.assert_array_equal(found.features[1], [1.5, np.nan, -0.0])
    assert (found.outcome.tolist(), found.score.tolist()) == ([True] * 3, [0.25] * 3)


def test_columns_are_taken_cut_and_joined_with_their_bytes() -> None:
    values = [msgspec.json.encode(msgspec.convert(example(score=n / 8), Settled)) for n in range(8)]
    found = COLUMNS.read(Spans.of(values))
    some = Outcomes.joined([found[6:], found.take(np.array([3, 1])), COLUMNS.read(Spans.of(values[:1]))])
    assert some.score.tolist() == [6 / 8, 7 / 8, 3 / 8, 1 / 8, 0.0]
    assert [some.settled(n).score for n in range(5)] == some.score.tolist()


def test_the_codec_gives_what_are_outcomes_in_the_order_of_the_log_and_says_why_the_others_are_none() -> None:
    good = json.dumps(example()).encode()
    decoded = OutcomeCodec(COLUMNS).decode([b"no", good, None, good, b"[]"], [None] * 5, np.zeros(5, np.int64))
    assert decoded.rows.tolist() == [1, 3]
    assert [row for row, _ in decoded.refused] == [0, 2, 4]
    assert all(error.reason.startswith("it is no outcome (") for _, error in decoded.refused)
    rows = Rows(np.arange(2), decoded.fields)
    assert list(COLUMNS.of(rows).values) == [good, good]
    with pytest.raises(msgspec.DecodeError):
        COLUMNS.read(Spans.of([b"{}"]))


def cells() -> list[int]:
    written = [msgspec.json.encode(msgspec.convert(example(score=n / 7), Settled)) for n in range(20)]
    made = COLUMNS.sift(Spans.of([*written, json.dumps(example()).encode()]))[0]
    found: list[int] = made.cells.ravel().tolist()
    return found


def test_without_the_compiler_the_cells_are_the_same() -> None:
    command = [sys.executable, "-c", "from tests.streams.test_outcomecolumns import cells; print(cells())"]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0" if kernels.INTERPRETED else "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == cells()
