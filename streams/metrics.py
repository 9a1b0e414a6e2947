"""Metrics of a process, for Prometheus: served on loopback where nothing else is said, with names of its own."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, start_http_server

logger = logging.getLogger("headrace.metrics")


def describe_process(registry: CollectorRegistry, part: str, bounds: Mapping[str, float]) -> None:
    """Add what a process is (memory, CPU, files) and the bounds it keeps, as `headrace_<part>_...`.

    The names differ by part, so that the gateway can serve those of all parts as one page.
    """
    ProcessCollector(namespace=f"headrace_{part}", registry=registry)
    told = Gauge(f"headrace_{part}_bound", "Bounds of queues, buffers and retries", ["bound"], registry=registry)
    for name, value in bounds.items():
        told.labels(name).set(value)


LOOPBACK = "127.0.0.1"


def serve(registry: CollectorRegistry, port: int, host: str = LOOPBACK, *, or_other: bool = False) -> int:
    """Serve a registry at http://host:port/metrics, to everyone who reaches it there: metrics want no token.

    or_other: serve it at any free port where this one is taken
    Returns the port; 0 where they are not served: a port that is taken, or a host that is none of this machine's,
    costs the metrics, not the process.
    """
    try:
        return start_http_server(port, host, registry)[0].server_port
    except OSError as error:
        if or_other and error.errno == errno.EADDRINUSE:
            return serve(registry, 0, host)
        logger.warning("metrics are not served: port %d on %s cannot be had (%s)", port, host, error.strerror)
        return 0
