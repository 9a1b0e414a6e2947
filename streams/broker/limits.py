"""Every bound of the local broker, with a name and the failure it prevents."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one broker allows. A connection has one request in flight: the next is read after the answer."""

    # A length field of garbage would otherwise make the broker reserve up to 2 GiB. As Kafka's
    # socket.request.max.bytes.
    frame_bytes: int = 100 * 1024 * 1024
    # Requests but produce: each of their entries, a byte or two, becomes an object of hundreds. A megabyte commits
    # the offsets of 30,000 partitions.
    request_bytes: int = 1024 * 1024
    # A frame that never ends would hold its room for ever; 100 MiB come within it at 2 MB/s.
    frame_ms: int = 60_000
    # A client that reads no more would hold its answer for ever. Each piece of an answer, which is a batch, has this
    # time of its own: slow readers of long answers are let be.
    answer_ms: int = 60_000
    # Requests and answers of all connections, in memory at once. As Kafka's queued.max.request.bytes, and more than
    # frame_bytes, or the largest frame would never get in.
    inflight_bytes: int = 256 * 1024 * 1024
    # Where users are asked for: connections of which it is not known whose they are, each with a frame of this size at
    # most and this long. Strangers must not take what users need.
    unauthenticated_connections: int = 100
    unauthenticated_frame_bytes: int = 64 * 1024
    authentication_ms: int = 10_000
    # How often a store that failed is tried again.
    reopen_ms: int = 1_000
    # One file descriptor and one read buffer each; the usual limit of descriptors is 1024.
    connections: int = 800
    # A client that does not read its answers may hold this much of them before its requests wait.
    unsent_bytes: int = 1024 * 1024
    # Large enough for one batch of the largest size, small enough that a loop turn stays short.
    fetch_bytes: int = 52_428_800
    # A fetch may not hold a connection forever; clients ask for half a second.
    fetch_wait_ms: int = 60_000
    # Each open transaction is held in memory until it ends or times out.
    open_transactions: int = 10_000
    # As Kafka's transaction.max.timeout.ms: an abandoned transaction hides later records from readers.
    transaction_timeout_ms: int = 900_000
    # The leader of a group receives the metadata of all members in one answer.
    group_members: int = 1_000
    groups: int = 10_000
    # As Kafka's group.min and max.session.timeout.ms.
    session_timeout_min_ms: int = 6_000
    session_timeout_max_ms: int = 1_800_000
    # As Kafka's group.initial.rebalance.delay.ms, which here is nothing: on one machine members start
    # together.
    first_rebalance_delay_ms: int = 0
    # As Kafka's offset.metadata.max.bytes.
    offset_metadata_bytes: int = 4_096
    topics: int = 10_000
    partitions_per_topic: int = 1_024
    # The newest batches of all partitions, kept in memory so that readers at the tail do not touch RocksDB.
    tail_cache_bytes: int = 24 * 1024 * 1024
    # From this size on a batch goes to a file: RocksDB would write it, and sum it up, three times and more.
    large_batch_bytes: int = 16 * 1024
    # Such files are freed as a whole: a larger one would be held for longer by the last of its batches.
    batch_file_bytes: int = 64 * 1024 * 1024
    # Idempotent producers not heard of for a day are forgotten, as Kafka's producer.id.expiration.ms.
    producer_expiry_ms: int = 86_400_000
    # A group without members and offsets is forgotten after this; Kafka looks every ten minutes.
    vacant_group_ms: int = 60_000
    # How often deadlines of groups and transactions are looked at: half of it is the mean delay of a
    # time-out.
    deadline_check_ms: int = 50
    # How often retention and compaction are looked at, as Kafka's log.retention.check.interval.ms (5 minutes)
    # and log.cleaner.backoff.ms (15 s).
    cleaning_interval_ms: int = 15_000
    # One step of compaction or retention, after which requests are served again.
    cleaning_step_bytes: int = 64 * 1024
    # Keys that one compaction remembers (about 150 bytes each); what lies above is compacted in the next
    # round.
    compaction_keys: int = 500_000
