"""Metrics of a process, for Prometheus: served on loopback, each process with names of its own."""

from __future__ import annotations

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


def serve(registry: CollectorRegistry, port: int) -> None:
    """Serve a registry at http://127.0.0.1:port/metrics. A port that is taken costs the metrics, not the process."""
    try:
        start_http_server(port, "127.0.0.1", registry)
    except OSError as error:
        logger.warning("metrics are not served: port %d on 127.0.0.1 cannot be had (%s)", port, error.strerror)
