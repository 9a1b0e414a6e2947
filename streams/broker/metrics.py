"""Counters of the broker in a registry of its own, which the embedding process may expose."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """What an operator looks at first: who is connected, what they ask, how many bytes, what is left open."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.connections = Gauge("headrace_broker_connections", "Open client connections.", registry=self.registry)
        self.refused = Counter(
            "headrace_broker_connections_refused", "Connections above the bound.", registry=self.registry
        )
        self.malformed = Counter(
            "headrace_broker_malformed_frames",
            "Connections closed for what they sent.",
            registry=self.registry,
        )
        self.requests = Counter("headrace_broker_requests", "Requests answered.", ["api"], registry=self.registry)
        self.failures = Counter(
            "headrace_broker_failures",
            "Requests that failed inside the broker.",
            ["api"],
            registry=self.registry,
        )
        self.received = Counter("headrace_broker_received_bytes", "Bytes of requests.", registry=self.registry)
        self.sent = Counter("headrace_broker_sent_bytes", "Bytes of responses.", registry=self.registry)

    def watch(self, partitions: Callable[[], int], open_transactions: Callable[[], int]) -> None:
        """Gauges read when they are asked for."""
        Gauge("headrace_broker_partitions", "Partitions.", registry=self.registry).set_function(partitions)
        Gauge("headrace_broker_open_transactions", "Transactions not yet ended.", registry=self.registry).set_function(
            open_transactions
        )
