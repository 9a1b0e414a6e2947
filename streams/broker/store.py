"""RocksDB beneath the broker: keys in order, and one atomic change for each request.

Keys (big-endian, so that RocksDB's order is ours):
  m<name>                        counters, the cluster's id, the format
  t<topic>                       a topic: its id, configuration and partitions
  p<partition>                   a partition: its bounds
  l<partition><last offset>      a record batch, by its last offset: one seek finds the batch of an offset; of a large
                                 one, where it is (see `files`)
  f<file><partition>             what a file of large batches has of a partition
  i<partition><last offset>      the batch's size and times, for look-ups that must not read records
  s<partition><producer id>      what a producer has written to a partition
  a<partition><last offset>      an aborted transaction
  o<group><topic><partition>     a committed offset
  x<transactional id>            a transaction
A partition's number is its own for ever: a topic made again under its old name gets new ones, so that what is
left of the old one can never be read as the new.
"""

import asyncio
import contextlib
import logging
import os
import struct
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rocksdict import DBCompressionType, DBRecoveryMode, Options, Rdict, ReadOptions, WriteBatch

from .errors import FolderInUse, FolderUnreadable, StoreDamaged, StoreFailed
from .files import PLACE_BYTES, BatchFiles, Place, unpack_held, unpack_place
from .limits import Limits

log = logging.getLogger(__name__)

FORMAT = b"headrace broker 3"
_OLDER_FORMATS = (b"headrace broker 1", b"headrace broker 2")
"""Without files of large batches, and with less told of them: whoever reads only these cannot read this one."""
_FORMAT_KEY = b"mformat"

_MEMTABLE_BYTES = 16 * 1024 * 1024
# Record batches go to blob files, so that compaction moves keys and not records.
_BLOB_MIN_BYTES = 512
_BLOB_FILE_BYTES = 64 * 1024 * 1024
# Written and read back before a store that failed is opened again. More than RocksDB needs to open, so that it is not
# opened into the next failure.
_ROOM_BYTES = 4 * 1024 * 1024
_TELL_EVERY_SECONDS = 10.0
# RocksDB keeps old information logs for ever unless told.
_INFO_LOGS = 2


class Change:
    """What one request changes, to be committed as a whole."""

    __slots__ = ("batch", "large")

    def __init__(self) -> None:
        self.batch = WriteBatch(raw_mode=True)
        self.large: list[tuple[int, int, Place, Sequence[bytes | memoryview]]] = []

    def put(self, key: bytes, value: bytes) -> None:
        self.batch.put(key, value)

    def delete(self, key: bytes) -> None:
        self.batch.delete(key)

    def delete_range(self, first: bytes, end: bytes) -> None:
        self.batch.delete_range(first, end)

    def delete_prefix(self, prefix: bytes) -> None:
        self.batch.delete_range(prefix, _after_prefix(prefix))


class Store:
    """
    The broker's folder.

    With `fsync`, what is committed is safe from a power cut once `settled` has returned; without, as soon as `commit`
    has, from the death of this process alone. With `accept_loss`, a damaged write-ahead log is read up to the damage.

    :raises FolderInUse: when another broker holds it.
    :raises FolderUnreadable: when it is not a broker's folder, or is damaged.
    """

    def __init__(
        self, folder: Path, limits: Limits | None = None, *, fsync: bool = False, accept_loss: bool = False
    ) -> None:
        self.folder = folder
        self._limits = limits or Limits()
        self.failure = ""
        """Why nothing more is written: after a failed write it is not known what the disk holds."""
        self.syncs = 0
        self._fsync = fsync
        self._written = self._synced = 0
        self._syncing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "fsync")
        self._told_at = -_TELL_EVERY_SECONDS
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = Rdict(str(folder), _options(accept_loss))
        except Exception as error:  # rocksdict raises plain exceptions; the text is all there is
            raise _unopened(folder, error) from error
        try:
            self._check_format()
            self.files = self._open_files(accept_loss)
        except Exception as error:
            self._db.close()
            if isinstance(error, StoreFailed):
                raise FolderUnreadable(f"The folder {folder} cannot be used: {error}") from error
            if isinstance(error, OSError):
                raise FolderUnreadable(
                    f"The files of {folder} cannot be looked at ({error}): let the broker read and write all of them, "
                    f"look after the disk, and start it again; or put the folder back from a copy."
                ) from error
            raise

    def _check_format(self) -> None:
        found = self.get(_FORMAT_KEY)
        if found in (None, *_OLDER_FORMATS):
            change = Change()
            change.put(_FORMAT_KEY, FORMAT)
            self.commit(change)
        elif found != FORMAT:
            raise FolderUnreadable(f"The folder {self.folder} has the format {found!r}; this broker reads {FORMAT!r}.")

    def _open_files(self, accept_loss: bool) -> BatchFiles:
        held = [(*_split_file_key(key), unpack_held(value)) for key, value in self.scan(b"f")]
        files = BatchFiles(self.folder, self._limits.batch_file_bytes, held)
        missing = files.incomplete()
        if missing and not accept_loss:
            raise FolderUnreadable(
                f"The file {missing[0]} is missing or cut off. Put the folder back from a copy; or start the broker "
                f"once with --accept-loss: readers are told where the file should have had something."
            )
        if missing:
            change = Change()
            for file, partition, entry in files.accept_loss():
                change.put(_file_key(file, partition), entry.pack())
            self.commit(change)
        return files

    def commit(self, change: Change) -> None:
        """
        Atomic and, when it returns, safe from the death of this process.

        :raises StoreFailed: it may or may not be kept; nothing is written any more until the store is opened anew.
        """
        if self.failure:
            raise StoreFailed(self.failure)
        try:
            for number, last_offset, place, pieces in change.large:
                held = self.files.write(number, last_offset, place, pieces)
                change.put(_file_key(place.file, number), held.pack())
            self._db.write(change.batch)
        except Exception as error:
            self._fail(error)
            raise StoreFailed(self.failure) from error
        self._written += 1

    @property
    def is_settled(self) -> bool:
        """Whether `settled` has nothing to wait for."""
        return not self._fsync or self._synced >= self._written

    async def settled(self) -> None:
        """
        Return when all that was committed before the call is as safe as promised: the group commit.

        Whoever asks while one fsync is on its way shares the next; so their number does not matter to the disk.

        :raises StoreFailed: nothing of it may be acknowledged.
        """
        target = self._written
        while self._fsync and self._synced < target:
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.create_task(self._sync())
            await asyncio.shield(self._syncing)

    async def _sync(self) -> None:
        upto = self._written
        try:
            if self.failure:
                raise StoreFailed(self.failure)
            await asyncio.get_running_loop().run_in_executor(self._thread, self._db.flush_wal, True)
        except StoreFailed:
            raise
        except Exception as error:
            # What an fsync failed to write may be gone from the system's cache: a second one would lie.
            self._fail(error)
            raise StoreFailed(self.failure) from error
        self._synced = upto
        self.syncs += 1

    def _fail(self, error: Exception) -> None:
        if "no space" in str(error).lower():
            why = f"the disk of {self.folder} is full: free some of it, and the broker goes on by itself"
        else:
            why = f"{self.folder} cannot be written ({error}): mend that, and the broker goes on by itself"
        self.failure = f"Nothing is acknowledged any more, {why}."
        log.error(self.failure)

    def put_batch(self, change: Change, number: int, last_offset: int, pieces: Sequence[bytes | memoryview]) -> bytes:
        """Stage a batch of a partition; gives the value that stands for it (see `whole`)."""
        size = sum(map(len, pieces))
        # A power cut may leave the write-ahead log and not the file: so with `fsync` there is one of them alone.
        if size < self._limits.large_batch_bytes or self._fsync:
            value = b"".join(pieces)
        else:
            place = self.files.place(size)
            change.large.append((number, last_offset, place, pieces))
            value = place.pack()
        change.put(batch_key(number, last_offset), value)
        return value

    def whole(self, value: bytes) -> bytes:
        """
        The batch for which a value stands, once it is committed. Who reads it checks it.

        :raises StoreDamaged: when its file cannot be read.
        """
        if not is_apart(value):
            return value
        try:
            return self.files.read(unpack_place(value))
        except OSError as error:
            raise self.damaged(error) from error

    def know(self, value: bytes, whole: bool) -> None:
        """The batch for which a value stands was checked, and found whole or not."""
        if not whole:
            self.files.doubt()
        elif is_apart(value):
            self.files.know(unpack_place(value))

    def knows(self, value: bytes) -> bool:
        """Whether the batch for which a value stands is in a file, and was checked since the start."""
        return is_apart(value) and self.files.knows(unpack_place(value))

    def send(self, value: bytes, at: int, socket: int) -> int:
        """Send a batch, from its byte `at` on, from its file to a socket; how many bytes it took."""
        try:
            return self.files.send(unpack_place(value), at, socket)
        except (OSError, AttributeError):  # a full or closed socket, a damaged file, a system without sendfile
            return 0

    def part(self, value: bytes, at: int, size: int) -> bytes:
        """Some bytes of a batch in a file, unchecked; fewer, or none, where they are not there."""
        place = unpack_place(value)
        try:
            return self.files.read(Place(place.file, place.at + at, min(size, place.size - at)))
        except OSError:
            return b""

    def reaches(self, value: bytes) -> bool:
        """
        Whether all of the batch for which a value stands can be there.

        :raises StoreDamaged: when its file cannot be opened.
        """
        try:
            return not is_apart(value) or self.files.reaches(unpack_place(value))
        except OSError as error:
            raise self.damaged(error) from error

    async def forget_file(self, file: int) -> None:
        """
        Remove a file of large batches that nobody needs.

        :raises StoreFailed:
        """
        change = Change()
        change.delete_prefix(_file_key(file))
        self.commit(change)
        # A power cut that left the entry without the file would look like a loss; and what was taken out of the file
        # must be safe elsewhere.
        await self._sync()
        self.files.remove(file)

    def get(self, key: bytes) -> bytes | None:
        """:raises StoreDamaged: when what is stored is damaged."""
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise self.damaged(error) from error
        return value

    def scan(self, prefix: bytes, start: bytes | None = None, *, checked: bool = True) -> Iterator[tuple[bytes, bytes]]:
        """Keys with the prefix, from `start` on, in order. checked: False where the caller verifies the values.

        :raises StoreDamaged: when what is stored is damaged.
        """
        bound = ReadOptions()
        bound.set_verify_checksums(checked)
        bound.set_iterate_upper_bound(_after_prefix(prefix))
        try:
            iterator = self._db.iter(bound)
            iterator.seek(prefix if start is None else start)
            while iterator.valid():
                yield iterator.key(), iterator.value()
                iterator.next()
            iterator.status()  # an iterator ends at damage as it ends at the end
        except GeneratorExit:
            raise
        except Exception as error:
            raise self.damaged(error) from error

    def damaged(self, error: object) -> StoreDamaged:
        told = (
            f"The folder {self.folder} is damaged ({error}): nothing of the damaged part is served. Stop the broker, "
            f"look after the disk, and put it back from a copy."
        )
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_SECONDS:
            self._told_at = now
            log.error(told)
        return StoreDamaged(told)

    def has_room(self) -> bool:
        """Whether the folder takes writes again."""
        probe = self.folder / "room"
        try:
            with probe.open("wb") as file:
                file.write(bytes(_ROOM_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
        return True

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self.files.close()
        try:
            if self._fsync and not self.failure:
                self._db.flush_wal(True)
            self._db.close()
        except Exception as error:
            log.error("The folder %s could not be closed in order: %s", self.folder, error)


def _unopened(folder: Path, error: Exception) -> FolderInUse | FolderUnreadable:
    text = str(error)
    if "lock" in text.lower() and "LOCK" in text:
        return FolderInUse(f"Another broker holds the folder {folder}.")
    if "no space" in text.lower():
        return FolderUnreadable(f"The disk of {folder} is full: free some of it, then start the broker again.")
    # Of every other file RocksDB tells the name.
    if "checksum mismatch" in text and not any(kind in text for kind in (".sst", ".blob", "MANIFEST")):
        return FolderUnreadable(
            f"The write-ahead log of {folder} is damaged ({text}). Put the folder back from a copy; or start the "
            f"broker once with --accept-loss: what was acknowledged after the damage is then lost."
        )
    return FolderUnreadable(
        f"The folder {folder} cannot be opened: {text}. If it is damaged, put it back from a copy; check the path too."
    )


def _options(accept_loss: bool) -> Options:
    options = Options(raw_mode=True)
    # An unfinished record at the very end was never acknowledged. Anything else that does not fit its check sum is
    # damage, which RocksDB by default takes for the end.
    mode = DBRecoveryMode.point_in_time() if accept_loss else DBRecoveryMode.tolerate_corrupted_tail_records()
    options.set_wal_recovery_mode(mode)
    options.set_paranoid_checks(True)
    options.create_if_missing(True)
    options.set_write_buffer_size(_MEMTABLE_BYTES)
    options.set_max_write_buffer_number(4)
    options.set_keep_log_file_num(_INFO_LOGS)
    options.set_max_background_jobs(2)
    options.set_enable_blob_files(True)
    options.set_min_blob_size(_BLOB_MIN_BYTES)
    options.set_blob_file_size(_BLOB_FILE_BYTES)
    options.set_enable_blob_gc(True)
    # Producers compress what is worth it; a second time costs more than it saves.
    options.set_compression_type(DBCompressionType.none())
    options.set_blob_compression_type(DBCompressionType.none())
    return options


def _after_prefix(prefix: bytes) -> bytes:
    for position in range(len(prefix) - 1, -1, -1):
        if prefix[position] != 0xFF:
            return prefix[:position] + bytes((prefix[position] + 1,))
    raise AssertionError("every key begins with a letter")


def is_apart(value: bytes) -> bool:
    """Whether the batch for which the value stands is in a file."""
    return len(value) == PLACE_BYTES


def size_of(value: bytes) -> int:
    """The size of the batch for which the value stands."""
    return unpack_place(value).size if is_apart(value) else len(value)


_PARTITION_OFFSET = struct.Struct(">cIq")


def topic_key(topic: str) -> bytes:
    return b"t" + topic.encode()


def partition_key(number: int) -> bytes:
    return b"p" + number.to_bytes(4)


def batch_key(number: int, last_offset: int) -> bytes:
    return _PARTITION_OFFSET.pack(b"l", number, last_offset)


def span_key(number: int, last_offset: int) -> bytes:
    return _PARTITION_OFFSET.pack(b"i", number, last_offset)


def _file_key(file: int, *partition: int) -> bytes:
    return b"f" + b"".join(number.to_bytes(4) for number in (file, *partition))


def _split_file_key(key: bytes) -> tuple[int, int]:
    return int.from_bytes(key[1:5]), int.from_bytes(key[5:])


def producer_key(number: int, producer_id: int) -> bytes:
    return _PARTITION_OFFSET.pack(b"s", number, producer_id)


def aborted_key(number: int, last_offset: int) -> bytes:
    return _PARTITION_OFFSET.pack(b"a", number, last_offset)


def partition_prefixes(number: int) -> list[bytes]:
    """Everything a partition owns."""
    return [letter + number.to_bytes(4) for letter in (b"p", b"l", b"i", b"s", b"a")]


def group_prefix(group: str) -> bytes:
    name = group.encode()
    return b"o" + len(name).to_bytes(2) + name


def offset_key(group: str, topic: str, partition: int) -> bytes:
    return group_prefix(group) + topic.encode() + b"\0" + partition.to_bytes(4)


def split_offset_key(key: bytes) -> tuple[str, str, int]:
    size = int.from_bytes(key[1:3])
    return key[3 : 3 + size].decode(), key[3 + size : -5].decode(), int.from_bytes(key[-4:])


def transaction_key(transactional_id: str) -> bytes:
    return b"x" + transactional_id.encode()
