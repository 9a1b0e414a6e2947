"""Rows that are held back: read as if they were written, written once, and in one piece with the position."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from headrace.streams import rocks as disk
from headrace.streams.batch import Change, Touched, one_by_one
from headrace.streams.behind import FEW, Behind, _columns, newest
from headrace.streams.errors import StateError
from headrace.streams.rocks import RocksStore
from headrace.streams.spans import Spans
from headrace.streams.store import MemoryStore
from hypothesis import given
from hypothesis import strategies as st


class Counted(MemoryStore):
    """Notes how many rows each write had. full: refuses, as a full disk does."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[int] = []
        self.full = False

    def write(self, changes: Iterable[Change | Touched]) -> None:
        if self.full:
            raise StateError("no room")
        rows = list(one_by_one(changes))
        self.writes.append(len(rows))
        super().write(rows)


def touched(rows: list[Change]) -> Touched:
    return Touched(Spans.of([key for key, _ in rows]), Spans.of([value for _, value in rows]))


changes = st.lists(st.tuples(st.binary(max_size=2), st.none() | st.binary(max_size=3)), max_size=40)


@given(st.lists(st.tuples(changes, st.booleans()), max_size=12), st.integers(0, 60), st.integers(1, 12))
def test_reads_see_what_was_written_however_much_is_held(
    commits: list[tuple[list[Change], bool]], most: int, reads: int
) -> None:
    plain, behind = MemoryStore(), Behind(MemoryStore(), most)
    for n, (rows, columns) in enumerate(commits):
        plain.write(rows)
        behind.write([touched(rows)] if columns else rows)
        if n % reads == 0:
            keys = sorted({key for key, _ in rows})
            assert behind.many(keys) == plain.many(keys)
            assert [behind.get(key) for key in keys] == [plain.get(key) for key in keys]
    assert list(behind.rows(b"")) == list(plain.rows(b""))


@pytest.mark.parametrize("count", [FEW // 2, 10 * FEW])
def test_only_the_last_change_of_a_key_is_written(count: int) -> None:
    rows: list[Change] = [(b"%d" % (n % 7), None if n % 3 else b"%d" % n) for n in range(count)]
    found = newest([touched(rows[:-2]), *rows[-2:]])
    assert sorted(one_by_one(found)) == sorted(dict(rows).items())


def test_rows_are_held_until_they_are_many_or_nothing_comes() -> None:
    store = Counted()
    behind = Behind(store, 1_000)
    for n in range(12):
        behind.write([(b"k", b"%100d" % n), (b"position", b"%d" % n)])
    assert store.writes == [2], "ten commits at one go"
    assert store.get(b"position") == b"9"
    behind.rest()
    behind.rest()
    assert store.writes == [2, 2]
    assert store.get(b"position") == b"11"


def test_a_buffer_that_is_mostly_of_others_is_not_held() -> None:
    data = np.zeros(1 << 20, np.uint8)
    behind = Behind(MemoryStore())
    here = np.array([1_000])
    behind.write([Touched(Spans.of([b"k"]), Spans(data, here, np.array([10])))])
    [held] = behind._held
    assert isinstance(held, Touched)
    assert len(held.values.data) == 10


def test_what_a_full_disk_refuses_is_tried_again_and_no_error_at_the_close() -> None:
    store = Counted()
    behind = Behind(store, 1 << 20)
    behind.write([(b"k", b"v")])
    store.full = True
    with pytest.raises(StateError):
        behind.get(b"k")
    store.full = False
    assert behind.get(b"k") == b"v"
    behind.write([(b"k", b"w")])
    store.full = True
    behind.close()


def test_an_emptied_store_holds_nothing_back() -> None:
    behind = Behind(MemoryStore())
    behind.write([(b"k", b"v")])
    behind.empty()
    assert behind.get(b"k") is None


def test_what_was_written_long_ago_survives_a_kill_and_a_close_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RocksStore(tmp_path)
    store.write([(b"a", b"1")])
    assert not list(tmp_path.glob("*.sst"))
    monkeypatch.setattr(disk, "KEPT_EVERY", 0.0)
    store.rest()
    until = time.monotonic() + 60
    while not list(tmp_path.glob("*.sst")):
        assert time.monotonic() < until, "what nobody adds to goes into a file, so that a kill does not take it"
        time.sleep(0.01)
    monkeypatch.undo()
    store.write([(b"b", b"2")])
    store.close()
    again = RocksStore(tmp_path)
    assert list(again.rows(b"")) == [(b"a", b"1"), (b"b", b"2")]
    again.close()


def test_rows_that_come_one_by_one_become_columns_together() -> None:
    touched = Touched(Spans.of([b"c", b"d"]), Spans.of([b"3", None]))
    made = list(_columns([(b"a", b"1"), (b"b", None), touched, (b"e", b"5")]))
    assert [list(one.keys) for one in made] == [[b"a", b"b"], [b"c", b"d"], [b"e"]]
    assert [list(one.values) for one in made] == [[b"1", None], [b"3", None], [b"5"]]
