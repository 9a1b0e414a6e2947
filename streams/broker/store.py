"""RocksDB beneath the broker: keys in order, and one atomic change for each request.

Keys (big-endian, so that RocksDB's order is ours):
  m<name>                        counters, the cluster's id, the format
  t<topic>                       a topic: its id, configuration and partitions
  p<partition>                   a partition: its bounds
  l<partition><last offset>      a record batch, by its last offset: one seek finds the batch of an offset
  i<partition><last offset>      the batch's size and times, for look-ups that must not read records
  s<partition><producer id>      what a producer has written to a partition
  a<partition><last offset>      an aborted transaction
  o<group><topic><partition>     a committed offset
  x<transactional id>            a transaction
A partition's number is its own for ever: a topic made again under its old name gets new ones, so that what is
left of the old one can never be read as the new.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from rocksdict import DBCompressionType, Options, Rdict, ReadOptions, WriteBatch, WriteOptions

from .errors import FolderInUse, FolderUnreadable

FORMAT = b"headrace broker 1"
_FORMAT_KEY = b"mformat"

_MEMTABLE_BYTES = 16 * 1024 * 1024
# Record batches go to blob files, so that compaction moves keys and not records.
_BLOB_MIN_BYTES = 512
_BLOB_FILE_BYTES = 64 * 1024 * 1024
# RocksDB keeps old information logs for ever unless told.
_INFO_LOGS = 2


class Change:
    """What one request changes, to be committed as a whole."""

    __slots__ = ("batch",)

    def __init__(self) -> None:
        self.batch = WriteBatch(raw_mode=True)

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

    :raises FolderInUse: when another broker holds it.
    :raises FolderUnreadable: when it is not a broker's folder.
    """

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder = folder
            self._db = Rdict(str(folder), _options())
        except Exception as error:  # rocksdict raises plain exceptions; the text is all there is
            if "lock" in str(error).lower():
                raise FolderInUse(f"Another broker holds the folder {folder}.") from error
            raise FolderUnreadable(f"The folder {folder} cannot be opened: {error}.") from error
        self._durable = WriteOptions()
        # Without sync a commit is in the system's cache: safe from a killed process, not from a power cut.
        self._durable.sync = fsync
        self._check_format(folder)

    def _check_format(self, folder: Path) -> None:
        found = self.get(_FORMAT_KEY)
        if found is None:
            change = Change()
            change.put(_FORMAT_KEY, FORMAT)
            self.commit(change)
        elif found != FORMAT:
            self.close()
            raise FolderUnreadable(f"The folder {folder} has the format {found!r}; this broker reads {FORMAT!r}.")

    def commit(self, change: Change) -> None:
        """Atomic and, when it returns, safe from the death of this process."""
        self._db.write(change.batch, self._durable)

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._db.get(key)
        return value

    def scan(
        self, prefix: bytes, start: bytes | None = None, *, checked: bool = True
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys with the prefix, from `start` on, in order. checked: False where the caller verifies the values."""
        bound = ReadOptions()
        bound.set_verify_checksums(checked)
        bound.set_iterate_upper_bound(_after_prefix(prefix))
        iterator = self._db.iter(bound)
        iterator.seek(prefix if start is None else start)
        while iterator.valid():
            yield iterator.key(), iterator.value()
            iterator.next()

    def close(self) -> None:
        self._db.close()


def _options() -> Options:
    options = Options(raw_mode=True)
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


_PARTITION_OFFSET = struct.Struct(">cIq")


def topic_key(topic: str) -> bytes:
    return b"t" + topic.encode()


def partition_key(number: int) -> bytes:
    return b"p" + number.to_bytes(4)


def batch_key(number: int, last_offset: int) -> bytes:
    return _PARTITION_OFFSET.pack(b"l", number, last_offset)


def span_key(number: int, last_offset: int) -> bytes:
    return _PARTITION_OFFSET.pack(b"i", number, last_offset)


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
