"""Transactions: who may write, what belongs to one, and its end as one change of the store.

With one process and one store there is no preparing: the markers of all partitions, the offsets of all
groups, the producer's new epoch and the transaction's new state are committed together or not at all.
"""

from collections.abc import Iterable
from enum import Enum

import msgspec
from kio.schema.errors import ErrorCode

from .batches import Batch
from .coordinator import Committed, GroupCoordinator, Place
from .errors import Refusal
from .limits import Limits
from .log import Append, PartitionLog
from .store import Change, Store, transaction_key
from .topics import Topics

_NEXT_PRODUCER_KEY = b"mnext-producer"
# The last epoch a client sees; the one above it is only in the marker that ends, or fences, a transaction.
_LAST_EPOCH = 2**15 - 2
NO_EPOCH = -1
# As Kafka's transactional.id.expiration.ms: ids that are made up anew at each start must not pile up.
_ID_EXPIRY_MS = 7 * 86_400_000


class State(Enum):
    """By Kafka's names, as clients see them."""

    EMPTY = "Empty"
    ONGOING = "Ongoing"
    COMMITTED = "CompleteCommit"
    ABORTED = "CompleteAbort"


class Transaction(msgspec.Struct):
    """The newest transaction of a transactional id."""

    id: str
    producer_id: int
    epoch: int
    timeout_ms: int
    last_epoch: int = NO_EPOCH
    """The epoch before the last change of it, whose answer may have been lost; none after another's InitProducerId."""
    previous_producer: int = -1
    """The id whose epochs were used up, for the same reason."""
    state: State = State.EMPTY
    started_ms: int = -1
    updated_ms: int = 0
    partitions: set[Place] = msgspec.field(default_factory=set)
    groups: set[str] = msgspec.field(default_factory=set)
    offsets: dict[str, list[tuple[str, int, Committed]]] = msgspec.field(default_factory=dict)


class TransactionCoordinator:
    """:raises Refusal: from every request, with the protocol's error code."""

    def __init__(self, store: Store, topics: Topics, groups: GroupCoordinator, limits: Limits) -> None:
        self._store = store
        self._topics = topics
        self._groups = groups
        self._limits = limits
        self._next_producer = int.from_bytes(store.get(_NEXT_PRODUCER_KEY) or b"\0")
        self._by_id: dict[str, Transaction] = {}
        self._by_producer: dict[int, Transaction] = {}
        self._open: dict[str, Transaction] = {}
        for _, value in store.scan(b"x"):
            self._remember(msgspec.msgpack.decode(value, type=Transaction))

    def _remember(self, transaction: Transaction) -> None:
        before = self._by_id.get(transaction.id)
        if before is not None and before.producer_id != transaction.producer_id:
            self._by_producer.pop(before.producer_id, None)
        self._by_id[transaction.id] = self._by_producer[transaction.producer_id] = transaction
        if transaction.state is State.ONGOING:
            self._open[transaction.id] = transaction
        else:
            self._open.pop(transaction.id, None)

    @property
    def open_count(self) -> int:
        return len(self._open)

    def all(self) -> Iterable[Transaction]:
        return tuple(self._by_id.values())

    def get(self, transactional_id: str) -> Transaction | None:
        return self._by_id.get(transactional_id)

    # Producers.

    def new_producer(self) -> int:
        """An id for a producer without transactions."""
        change = Change()
        producer_id = self._stage_producer(change)
        self._store.commit(change)
        return producer_id

    def _stage_producer(self, change: Change) -> int:
        # The number is used up even when the change fails.
        producer_id, self._next_producer = self._next_producer, self._next_producer + 1
        change.put(_NEXT_PRODUCER_KEY, self._next_producer.to_bytes(8))
        return producer_id

    def begin_producer(
        self, transactional_id: str, timeout_ms: int, producer_id: int, epoch: int, now_ms: int
    ) -> Transaction:
        """InitProducerId: fence whoever used the id before, and end what it left open.

        A producer that says who it was (`producer_id` and `epoch`) goes on after an error; it must not do so when
        another has begun in the meantime.
        """
        if not transactional_id:
            raise Refusal(ErrorCode.invalid_request, "A transactional id is not empty.")
        if not 0 < timeout_ms <= self._limits.transaction_timeout_ms:
            raise Refusal(
                ErrorCode.invalid_transaction_timeout,
                f"A transaction may take 1 to {self._limits.transaction_timeout_ms} ms, not {timeout_ms}.",
            )
        change = Change()
        before = self._by_id.get(transactional_id)
        if before is None:
            return self._commit(
                Transaction(transactional_id, self._stage_producer(change), 0, timeout_ms), change, [], now_ms
            )
        known = producer_id >= 0
        rotated = (producer_id, epoch) == (before.previous_producer, _LAST_EPOCH)
        if known and not rotated and producer_id != before.producer_id:
            raise _fenced(before, epoch)
        ongoing = before.state is State.ONGOING
        if known and epoch != before.epoch and (ongoing or epoch != before.last_epoch):
            raise _fenced(before, epoch)
        appends: list[tuple[PartitionLog, Append]] = []
        if ongoing:
            before, appends = self._stage_end(before, False, change, now_ms, bumps=True, fences=True)
        after = Transaction(transactional_id, before.producer_id, before.epoch, timeout_ms, before.last_epoch)
        after.previous_producer = before.previous_producer
        if not known or epoch == before.epoch or before.epoch > _LAST_EPOCH:
            after.last_epoch = epoch if known else NO_EPOCH
            after.epoch += 1
            if before.epoch >= _LAST_EPOCH:
                after.producer_id, after.epoch = self._stage_producer(change), 0
                after.previous_producer = before.producer_id
        # Else the answer to the same request was lost: it is given again, and nobody is fenced by asking.
        return self._commit(after, change, appends, now_ms)

    def enter(self, producer_id: int, epoch: int, places: Iterable[Place], now_ms: int) -> None:
        """Make partitions part of the producer's transaction because it writes to them.

        Who does not own a transaction is refused with its batches.
        """
        transaction = self._by_producer.get(producer_id)
        if transaction is None or transaction.epoch != epoch:
            return
        if transaction.state is not State.ONGOING or not transaction.partitions.issuperset(places):
            self.add_partitions(transaction.id, producer_id, epoch, places, now_ms)

    def check_append(self, batch: Batch, place: Place, *, knows_abortable: bool) -> None:
        """May this transactional batch be written there?"""
        transaction = self._by_producer.get(batch.producer_id)
        if transaction is None:
            raise Refusal(
                ErrorCode.invalid_producer_id_mapping,
                f"Producer {batch.producer_id} has no transactional id.",
            )
        if batch.producer_epoch != transaction.epoch:
            raise Refusal(
                ErrorCode.invalid_producer_epoch,
                f"Producer {batch.producer_id} is at epoch {transaction.epoch}, not {batch.producer_epoch}.",
            )
        if transaction.state is not State.ONGOING or place not in transaction.partitions:
            raise Refusal(
                ErrorCode.transaction_abortable if knows_abortable else ErrorCode.invalid_txn_state,
                f"Partition {place[1]} of {place[0]!r} is in no open transaction of {transaction.id!r}.",
            )

    def _owned(self, transactional_id: str, producer_id: int, epoch: int) -> Transaction:
        transaction = self._by_id.get(transactional_id)
        if transaction is None or transaction.producer_id != producer_id:
            raise Refusal(
                ErrorCode.invalid_producer_id_mapping,
                f"Transactional id {transactional_id!r} does not belong to producer {producer_id}.",
            )
        if transaction.epoch != epoch:
            raise _fenced(transaction, epoch)
        return transaction

    # What belongs to a transaction.

    def add_partitions(
        self, transactional_id: str, producer_id: int, epoch: int, places: Iterable[Place], now_ms: int
    ) -> None:
        transaction = self._owned(transactional_id, producer_id, epoch)
        if transaction.state is State.ONGOING and transaction.partitions.issuperset(places):
            return
        after = self._ongoing(transaction, now_ms)
        after.partitions = after.partitions | set(places)
        self._commit(after, Change(), [], now_ms)

    def check_partitions(
        self, transactional_id: str, producer_id: int, epoch: int, places: Iterable[Place], now_ms: int
    ) -> None:
        """:raises Refusal: TRANSACTION_ABORTABLE unless all of them are in the open transaction."""
        transaction = self._owned(transactional_id, producer_id, epoch)
        if transaction.state is not State.ONGOING or not transaction.partitions.issuperset(places):
            raise Refusal(
                ErrorCode.transaction_abortable, f"Not all partitions are in a transaction of {transactional_id!r}."
            )

    def add_group(self, transactional_id: str, producer_id: int, epoch: int, group: str, now_ms: int) -> None:
        transaction = self._owned(transactional_id, producer_id, epoch)
        if transaction.state is State.ONGOING and group in transaction.groups:
            return
        after = self._ongoing(transaction, now_ms)
        after.groups = after.groups | {group}
        self._commit(after, Change(), [], now_ms)

    def add_offsets(
        self,
        transactional_id: str,
        producer_id: int,
        epoch: int,
        group: str,
        offsets: dict[Place, Committed],
        now_ms: int,
        *,
        knows_abortable: bool,
    ) -> None:
        """Offsets that are committed when, and only when, the transaction is."""
        transaction = self._owned(transactional_id, producer_id, epoch)
        if transaction.state is not State.ONGOING or group not in transaction.groups:
            raise Refusal(
                ErrorCode.transaction_abortable if knows_abortable else ErrorCode.invalid_txn_state,
                f"Group {group!r} is in no open transaction of {transactional_id!r}.",
            )
        held = {(topic, index): committed for topic, index, committed in transaction.offsets.get(group, ())}
        listed = [(topic, index, committed) for (topic, index), committed in (held | offsets).items()]
        after = msgspec.structs.replace(transaction, offsets={**transaction.offsets, group: listed})
        self._commit(after, Change(), [], now_ms)

    def _ongoing(self, transaction: Transaction, now_ms: int) -> Transaction:
        if transaction.state is State.ONGOING:
            return msgspec.structs.replace(transaction)
        if len(self._open) >= self._limits.open_transactions:
            raise Refusal(
                ErrorCode.concurrent_transactions,
                f"{self._limits.open_transactions} transactions are open; one must end first.",
            )
        return msgspec.structs.replace(
            transaction, state=State.ONGOING, started_ms=now_ms, partitions=set(), groups=set(), offsets={}
        )

    def unstable(self, group: str) -> set[Place]:
        """The partitions for which an open transaction holds offsets of the group."""
        return {
            (topic, index)
            for transaction in self._open.values()
            for topic, index, _ in transaction.offsets.get(group, ())
        }

    # The end.

    def end(
        self, transactional_id: str, producer_id: int, epoch: int, commit: bool, now_ms: int, *, bumps: bool
    ) -> Transaction:
        """
        Commit or abort.

        bumps: in transactions of version 2 the producer's epoch rises, so that what is still on its way from an ended
            transaction cannot get into the next
        """
        if not transactional_id:
            raise Refusal(ErrorCode.invalid_request, "A transactional id is not empty.")
        transaction = self._by_id.get(transactional_id)
        if transaction is not None and bumps and _is_repeated(transaction, producer_id, epoch):
            return _ended_before(transaction, commit)
        transaction = self._owned(transactional_id, producer_id, epoch)
        if transaction.state is not State.ONGOING:
            if not bumps:
                return _ended_before(transaction, commit)
            if commit:
                raise _nothing_to_end(transaction)
        change = Change()
        after, appends = self._stage_end(transaction, commit, change, now_ms, bumps=bumps)
        ended = self._commit(after, change, appends, now_ms)
        if commit:
            for group, committed in _by_group(transaction).items():
                self._groups.apply(group, committed)
        return ended

    def _stage_end(
        self,
        transaction: Transaction,
        commit: bool,
        change: Change,
        now_ms: int,
        *,
        bumps: bool,
        fences: bool = False,
    ) -> tuple[Transaction, list[tuple[PartitionLog, Append]]]:
        after = Transaction(
            transaction.id,
            transaction.producer_id,
            transaction.epoch,
            transaction.timeout_ms,
            transaction.last_epoch,
            transaction.previous_producer,
            State.COMMITTED if commit else State.ABORTED,
            transaction.started_ms if transaction.state is State.ONGOING else now_ms,
        )
        appends: list[tuple[PartitionLog, Append]] = []
        if bumps:
            after.last_epoch, after.epoch = transaction.epoch, transaction.epoch + 1
        if transaction.state is State.ONGOING:
            appends = self._stage_markers(transaction, after.epoch, commit, change, now_ms)
            if commit:
                for group, committed in _by_group(transaction).items():
                    self._groups.stage(group, committed, change)
        if after.epoch > _LAST_EPOCH and not fences:
            after.previous_producer = transaction.producer_id
            after.producer_id, after.epoch = self._stage_producer(change), 0
        return after, appends

    def _stage_markers(
        self, transaction: Transaction, epoch: int, commit: bool, change: Change, now_ms: int
    ) -> list[tuple[PartitionLog, Append]]:
        staged = []
        for topic, index in sorted(transaction.partitions):
            try:
                log = self._topics.partition(topic, index)
            except Refusal:
                continue  # deleted while the transaction was open
            staged.append((log, log.stage_marker(transaction.producer_id, epoch, commit, change, now_ms)))
        return staged

    def _commit(
        self, after: Transaction, change: Change, appends: list[tuple[PartitionLog, Append]], now_ms: int
    ) -> Transaction:
        after.updated_ms = now_ms
        change.put(transaction_key(after.id), msgspec.msgpack.encode(after))
        self._store.commit(change)
        self._remember(after)
        for log, append in appends:
            log.apply(append)
        return after

    # Time.

    def tick(self, now_ms: int) -> None:
        """Abort what has been open too long; the epoch is raised, so the one who left it open is fenced."""
        for transaction in tuple(self._open.values()):
            if transaction.started_ms + transaction.timeout_ms <= now_ms:
                change = Change()
                after, appends = self._stage_end(transaction, False, change, now_ms, bumps=True, fences=True)
                self._commit(after, change, appends, now_ms)

    def forget_old_ids(self, now_ms: int) -> None:
        change = Change()
        old = [
            transaction
            for transaction in self._by_id.values()
            if transaction.state is not State.ONGOING and transaction.updated_ms + _ID_EXPIRY_MS <= now_ms
        ]
        for transaction in old:
            change.delete(transaction_key(transaction.id))
        if old:
            self._store.commit(change)
        for transaction in old:
            del self._by_id[transaction.id], self._by_producer[transaction.producer_id]


def _fenced(transaction: Transaction, epoch: int) -> Refusal:
    return Refusal(
        ErrorCode.producer_fenced,
        f"Transactional id {transaction.id!r} is at epoch {transaction.epoch}; epoch {epoch} was fenced.",
    )


def _is_repeated(transaction: Transaction, producer_id: int, epoch: int) -> bool:
    """Whether this is the end that the transaction already had, from before its epoch rose."""
    if transaction.state not in (State.COMMITTED, State.ABORTED):
        return False
    if producer_id == transaction.producer_id:
        return epoch + 1 == transaction.epoch
    return (producer_id, epoch, transaction.epoch) == (transaction.previous_producer, _LAST_EPOCH, 0)


def _ended_before(transaction: Transaction, commit: bool) -> Transaction:
    """The answer to the same request was lost; another one is refused."""
    if transaction.state is not (State.COMMITTED if commit else State.ABORTED):
        raise _nothing_to_end(transaction)
    return transaction


def _nothing_to_end(transaction: Transaction) -> Refusal:
    return Refusal(
        ErrorCode.invalid_txn_state,
        f"{transaction.id!r} is {transaction.state.value}: there is nothing to end so.",
    )


def _by_group(transaction: Transaction) -> dict[str, dict[Place, Committed]]:
    return {
        group: {(topic, index): committed for topic, index, committed in listed}
        for group, listed in transaction.offsets.items()
    }
