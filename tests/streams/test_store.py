"""State on disk that is damaged, held or in no place to be: told, and never taken for less than it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from headrace.streams.errors import StateError
from headrace.streams.rocks import RocksStore
from headrace.streams.slots import Slot

ROWS = 20_000
KEYS = [b"op\x00%05d" % n for n in range(ROWS)]


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[float, float], Path]:
    """A state whose files on disk are spoilt from one part of each to another."""
    # "lock" is in its name, as it is in "block": a damaged block is no lock that another process holds.
    path = tmp_path / "locks"
    store = RocksStore(path)
    store.write([(key, os.urandom(100)) for key in KEYS])
    store._db.flush()
    store.close()

    def spoil(begin: float, end: float) -> Path:
        for file in path.glob("*.sst"):
            held = bytearray(file.read_bytes())
            for n in range(int(len(held) * begin), int(len(held) * end)):
                held[n] ^= 0x5A
            file.write_bytes(held)
        return path

    return spoil


def test_rows_behind_a_damaged_block_are_not_taken_for_rows_that_are_not_there(
    damaged: Callable[[float, float], Path],
) -> None:
    store = RocksStore(damaged(0.4, 0.5))
    found = []
    with pytest.raises(StateError, match=r"locks cannot be read \(Corruption.*delete the folder and it"):
        found += [key for key, _ in store.rows(b"op\x00")]
    with pytest.raises(StateError, match="cannot be read"):
        [store.get(key) for key in KEYS]
    with pytest.raises(StateError, match="cannot be read"):
        store.many(KEYS)
    with pytest.raises(StateError, match="cannot be read"):
        store.many([b"op\x00"])
    assert store.many([b"other\x00"]).counts == [0]
    assert len(list(store.rows(b"other\x00"))) == 0
    store.close()


def test_a_state_that_cannot_be_opened_is_not_said_to_be_held_by_another_process(
    damaged: Callable[[float, float], Path],
) -> None:
    with pytest.raises(StateError, match=r"cannot be read .*delete the folder"):
        RocksStore(damaged(0.97, 0.9999))


def test_a_state_that_is_held_is_said_to_be(tmp_path: Path) -> None:
    store = RocksStore(tmp_path)
    with pytest.raises(StateError, match="another process holds the state"):
        RocksStore(tmp_path)
    store.close()


def test_a_worker_without_a_place_for_its_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "workers").touch()
    with pytest.raises(StateError, match=r"workers/0 cannot be made or locked \(.*\): .* --data"):
        Slot(tmp_path)


@pytest.mark.parametrize("act", [lambda s: s.empty(), lambda s: s.ordering(False), lambda s: s.write([(b"k", b"v")])])
def test_a_state_that_cannot_be_written_is_told_with_its_folder(
    tmp_path: Path, act: Callable[[RocksStore], None]
) -> None:
    store = RocksStore(tmp_path / "state")
    store._db.close()  # as where RocksDB refuses after an error of the disk
    with pytest.raises(StateError, match=r"state cannot be written .*start the worker again"):
        act(store)
