"""Large record batches, in files beside RocksDB.

RocksDB would write each several times (to its log, to a file, again when files are merged) and sum it up each time;
here it is written once. A file takes the batches of all partitions, one after the other, until it is full, and goes as
a whole when no partition needs a batch of it any more; the cleaner takes the last ones out of it. What a file has of
which partition is an entry in RocksDB, written in the change that writes the batch.
"""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import NamedTuple, TypeAlias

# A descriptor each. Readers of old records go through a few files at a time.
_OPEN_FILES = 16
# Batches of older files that were found whole, about 150 bytes each; when there are more, they are looked at again.
_KNOWN = 50_000
_PLACE = struct.Struct(">IQI")
_HELD = struct.Struct(">qQqQ")
_OLDER_HELD = struct.Struct(">qQ")
# With less of it needed a file is sparse: to take that out writes a third, at most, of what is then freed.
_SPARSE = 0.25


class Place(NamedTuple):
    """Where a batch is."""

    file: int
    at: int
    size: int

    def pack(self) -> bytes:
        return _PLACE.pack(*self)


PLACE_BYTES = _PLACE.size
"""Less than the header of a batch: a value of this size tells where a batch is, and is none itself."""


def unpack_place(data: bytes) -> Place:
    return Place(*_PLACE.unpack(data))


class Held(NamedTuple):
    """What a file has of one partition."""

    last_offset: int
    end: int
    """Where its last batch ends in the file."""
    first_batch: int
    """The last offset of its first batch there."""
    size: int

    def pack(self) -> bytes:
        return _HELD.pack(*self)

    def needed(self, floor: int) -> int:
        """About how many bytes of it are of batches that end at `floor` or after it; nothing only if none does."""
        if self.last_offset < floor:
            return 0
        offsets = self.last_offset + 1 - self.first_batch
        return max(1, self.size * min(offsets, self.last_offset + 1 - floor) // offsets)


def unpack_held(data: bytes) -> Held:
    if len(data) == _HELD.size:
        return Held(*_HELD.unpack(data))
    last_offset, end = _OLDER_HELD.unpack(data)
    return Held(last_offset, end, 0, end)


Floors: TypeAlias = Mapping[int, int]
"""For each partition, by its number, the offset before which it needs no file; one that is not there needs none."""


class BatchFiles:
    """
    A batch gets its place first, and is written when its change is.

    file_bytes: where a file is full; a batch that is larger has one of its own
    held: what each file has of each partition, by their numbers; of files that are not among them no change was made.
    """

    def __init__(self, folder: Path, file_bytes: int, held: Iterable[tuple[int, int, Held]]) -> None:
        self._folder = folder
        self._file_bytes = file_bytes
        self._held: dict[int, dict[int, Held]] = {}
        for file, partition, entry in held:
            self._held.setdefault(file, {})[partition] = entry
        self._open: dict[int, FileIO] = {}
        # A file that was closed is never written to again: it may end with what no change was made of.
        self._current = max(self._held, default=0)
        self._first_own = self._current + 1
        self._known: set[Place] = set()
        self._end = file_bytes
        for path in folder.glob("*.batches"):
            if path.stem.isdigit() and int(path.stem) not in self._held:
                _unlink(path)

    def _path(self, file: int) -> Path:
        return self._folder / f"{file:08}.batches"

    def incomplete(self) -> list[Path]:
        """The files that are missing, or have less than they should."""
        return [self._path(file) for file, held in self._held.items() if self._size(file) < _end(held)]

    def accept_loss(self) -> Iterator[tuple[int, int, Held]]:
        """Take what is left of them for all that they should have; what they now have, as `held`."""
        for file, held in self._held.items():
            size = self._size(file)
            if size < _end(held):
                self._path(file).touch()
                for partition, entry in held.items():
                    held[partition] = entry._replace(end=min(entry.end, max(size, 0)))
                    yield file, partition, held[partition]

    def _size(self, file: int) -> int:
        path = self._path(file)
        return path.stat().st_size if path.exists() else -1

    def place(self, size: int) -> Place:
        """Room for a batch; if nothing is written there, it stays a hole."""
        if self._end + size > self._file_bytes:
            self._current += 1
            self._end = 0
        self._end += size
        return Place(self._current, self._end - size, size)

    def write(self, partition: int, last_offset: int, place: Place, pieces: Sequence[bytes | memoryview]) -> Held:
        """:raises OSError:"""
        file = self._opened(place.file)
        file.seek(place.at)
        for piece in pieces:
            left = memoryview(piece)
            while left:
                left = left[file.write(left) :]
        held = self._held.setdefault(place.file, {})
        before = held.get(partition, Held(last_offset, 0, last_offset, 0))
        held[partition] = Held(last_offset, place.at + place.size, before.first_batch, before.size + place.size)
        return held[partition]

    def read(self, place: Place) -> bytes:
        """The batch, or less, where the file has less. :raises OSError:"""
        file = self._found(place.file)
        if file is None:
            return b""
        return os.pread(file.fileno(), place.size, place.at)

    def know(self, place: Place) -> None:
        """The batch there was checked."""
        if place.file < self._first_own:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known.add(place)

    def doubt(self) -> None:
        """Something was found damaged: all is checked again."""
        self._first_own = self._current + 1
        self._known.clear()

    def knows(self, place: Place) -> bool:
        """Whether the batch there was checked since the start, when it came or when it was read."""
        return place.file >= self._first_own or place in self._known

    def send(self, place: Place, at: int, socket: int) -> int:
        """Send the batch from its byte `at` on to a socket, unread; how many bytes it took. :raises OSError:"""
        file = self._found(place.file)
        return 0 if file is None else os.sendfile(socket, file.fileno(), place.at + at, place.size - at)

    def reaches(self, place: Place) -> bool:
        """Whether the file is there and has all of the place. :raises OSError:"""
        file = self._found(place.file)
        return file is not None and os.fstat(file.fileno()).st_size >= place.at + place.size

    def _found(self, file: int) -> FileIO | None:
        with contextlib.suppress(FileNotFoundError):
            return self._opened(file) if file in self._held else None
        return None

    def _opened(self, file: int) -> FileIO:
        found = self._open.pop(file, None)
        if found is None:
            if len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            # Only what is written first may make a file: one that is missing is never made up for by an empty one.
            found = FileIO(self._path(file), "rb+" if file in self._held else "wb+")
        self._open[file] = found
        return found

    def needless(self, floors: Floors) -> list[int]:
        """The files of which no partition needs anything. Nothing more is written to them."""
        found = [file for file, held in self._held.items() if not _needed(held, floors)]
        if self._current in found:
            self._end = self._file_bytes
        return found

    def sparse(self, floors: Floors) -> dict[int, dict[int, Held]]:
        """Files that are full and of which little is needed; and what they have of the partitions that need it."""
        return {
            file: {partition: entry for partition, entry in held.items() if _needed({partition: entry}, floors)}
            for file, held in self._held.items()
            if file != self._current and 0 < _needed(held, floors) < _SPARSE * _end(held)
        }

    def remove(self, file: int) -> None:
        self._held.pop(file, None)
        if file in self._open:
            self._open.pop(file).close()
        _unlink(self._path(file))

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()


def _needed(held: Mapping[int, Held], floors: Floors) -> int:
    return sum(entry.needed(floors[partition]) for partition, entry in held.items() if partition in floors)


def _end(held: Mapping[int, Held]) -> int:
    return max(entry.end for entry in held.values())


def _unlink(path: Path) -> None:
    """Where it cannot be removed now, it is at the next start."""
    with contextlib.suppress(OSError):
        path.unlink()
