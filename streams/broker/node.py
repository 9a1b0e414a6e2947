"""The broker without its sockets: the store and everything that stands on it."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from .cleaning import Cleaner
from .clock import Clock
from .coordinator import GroupCoordinator
from .flight import Flight
from .limits import Limits
from .metrics import Metrics
from .store import Change, Store
from .topics import Topics
from .transactions import TransactionCoordinator

NODE_ID = 1
_CLUSTER_KEY = b"mcluster"


@dataclass(slots=True)
class Node:
    """One broker's state. Every method of what it holds is synchronous and short."""

    store: Store
    topics: Topics
    groups: GroupCoordinator
    transactions: TransactionCoordinator
    cleaner: Cleaner
    limits: Limits
    clock: Clock
    metrics: Metrics
    flight: Flight
    cluster_id: str
    auto_create: bool
    default_partitions: int
    host: str = ""
    port: int = 0

    def tick(self) -> None:
        """Everything that happens because time passes, but cleaning."""
        self.groups.tick(self.clock.monotonic_ms())
        self.transactions.tick(self.clock.wall_ms())


def open_node(
    folder: Path,
    *,
    limits: Limits,
    clock: Clock,
    fsync: bool,
    auto_create: bool,
    default_partitions: int,
    accept_loss: bool = False,
    metrics: Metrics | None = None,
    flight: Flight | None = None,
) -> Node:
    """:raises FolderInUse: :raises FolderUnreadable:"""
    store = Store(folder, limits, fsync=fsync, accept_loss=accept_loss)
    try:
        topics = Topics(store, limits)
        groups = GroupCoordinator(store, limits)
        transactions = TransactionCoordinator(store, topics, groups, limits)
        metrics = metrics or Metrics()
        metrics.watch(
            lambda: sum(len(topic.partitions) for topic in topics),
            lambda: transactions.open_count,
            lambda: store.syncs,
        )
        return Node(
            store,
            topics,
            groups,
            transactions,
            Cleaner(store, topics, limits, clock),
            limits,
            clock,
            metrics,
            flight or Flight(limits.inflight_bytes),
            _cluster_id(store),
            auto_create,
            default_partitions,
        )
    except BaseException:
        store.close()
        raise


def _cluster_id(store: Store) -> str:
    found = store.get(_CLUSTER_KEY)
    if found is None:
        found = secrets.token_urlsafe(16).encode()
        change = Change()
        change.put(_CLUSTER_KEY, found)
        store.commit(change)
    return found.decode()
