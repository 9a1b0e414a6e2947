"""Counters of the broker in a registry of its own, which the embedding process may expose."""

from collections.abc import Callable
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge

from .flight import Flight


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
        self.answered = cache(self.requests.labels)
        self.received = Counter("headrace_broker_received_bytes", "Bytes of requests.", registry=self.registry)
        self.sent = Counter("headrace_broker_sent_bytes", "Bytes of responses.", registry=self.registry)

        self.unauthenticated = Counter(
            "headrace_broker_unauthenticated",
            "Connections closed because they did not show who they are.",
            registry=self.registry,
        )
        self.strangers = Gauge(
            "headrace_broker_unauthenticated_connections",
            "Open connections of which it is not known whose they are.",
            registry=self.registry,
        )
        self.store_failed = Gauge(
            "headrace_broker_store_failed",
            "1 while the store cannot be written: nothing is acknowledged.",
            registry=self.registry,
        )
        self._syncs = Gauge("headrace_broker_syncs", "Group commits since the start.", registry=self.registry)
        self._partitions = Gauge("headrace_broker_partitions", "Partitions.", registry=self.registry)
        self._open = Gauge("headrace_broker_open_transactions", "Transactions not yet ended.", registry=self.registry)
        self._inflight = Gauge(
            "headrace_broker_inflight_bytes", "Requests and answers in memory.", registry=self.registry
        )
        self._waited = Gauge(
            "headrace_broker_inflight_waits", "Requests that waited for room since the start.", registry=self.registry
        )

    def watch(
        self, partitions: Callable[[], int], open_transactions: Callable[[], int], syncs: Callable[[], int]
    ) -> None:
        """Gauges read when they are asked for; again, when the store was opened anew."""
        self._partitions.set_function(partitions)
        self._open.set_function(open_transactions)
        self._syncs.set_function(syncs)

    def watch_flight(self, flight: Flight) -> None:
        self._inflight.set_function(lambda: flight.held)
        self._waited.set_function(lambda: flight.waited)
