"""The local broker: the Kafka protocol over RocksDB, for one machine.

From the wire inwards: `server` (connections, frames), `sasl` and `users` (who asks), `flight` and `shape` (how much
of it at once), `api` (which APIs in which versions), `answers_*` (one
function for each API), `node` (what they act on): `topics` and `log` (records), `coordinator` and `groups`
(consumers), `transactions`, `cleaning` (retention, compaction), all over `store` (RocksDB).
"""

from .clock import Clock
from .errors import AddressRefused, BrokerError, FolderInUse, FolderUnreadable, StoreFailed, UsersUnreadable
from .limits import Limits
from .metrics import Metrics
from .server import Broker

__all__ = [
    "AddressRefused",
    "Broker",
    "BrokerError",
    "Clock",
    "FolderInUse",
    "FolderUnreadable",
    "Limits",
    "Metrics",
    "StoreFailed",
    "UsersUnreadable",
]
