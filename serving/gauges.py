"""The gateway's metrics, in a registry of their own."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.streams.metrics import describe_process
from headrace.streams.roster import STATES, Crew
from headrace.streams.traffic import Flow
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Gauges:
    """Metrics of one gateway."""

    def __init__(self, bounds: Mapping[str, float]) -> None:
        self.registry = CollectorRegistry()
        self.published = Counter("headrace_gateway_published", "Events published", ["topic"], registry=self.registry)
        self.rejected = Counter(
            "headrace_gateway_rejected", "Requests with an invalid event", ["topic"], registry=self.registry
        )
        self.publish_seconds = Histogram(
            "headrace_gateway_publish_seconds", "From a request to its receipts", registry=self.registry
        )
        self.posts = Gauge("headrace_gateway_posts", "Requests that are publishing", registry=self.registry)
        self.subscribers = Gauge("headrace_gateway_subscribers", "Open streams", registry=self.registry)
        self.slow = Counter("headrace_gateway_slow", "Streams ended for a slow client", registry=self.registry)
        self.topic_records = Gauge("headrace_topic_records", "Records held", ["topic"], registry=self.registry)
        self.topic_written = Counter("headrace_topic_written", "Records written", ["topic"], registry=self.registry)
        self.processor_lag = Gauge(
            "headrace_processor_lag", "Records not yet processed", ["processor"], registry=self.registry
        )
        self.processor_processed = Counter(
            "headrace_processor_processed", "Records processed", ["processor"], registry=self.registry
        )
        self.workers = Gauge("headrace_workers", "Workers by state", ["state"], registry=self.registry)
        self.tasks = Gauge(
            "headrace_tasks", "Tasks by state; unowned: nobody runs it", ["processor", "state"], registry=self.registry
        )
        self.restore_done = Gauge(
            "headrace_restore_done", "Changelog records read by restores under way", registry=self.registry
        )
        self.restore_wanted = Gauge(
            "headrace_restore_wanted", "Changelog records of restores under way", registry=self.registry
        )
        self.part_up = Gauge(
            "headrace_part_up", "Whether a part of the stack served its metrics", ["part"], registry=self.registry
        )
        describe_process(self.registry, "gateway", bounds)

    def show(self, flow: Flow) -> None:
        for topic in flow.topics:
            self.topic_records.labels(topic.name).set(topic.records)
            self.topic_written.labels(topic.name).inc(topic.rate * flow.seconds)
        for processor in flow.processors:
            self.processor_lag.labels(processor.name).set(processor.lag or 0)
            self.processor_processed.labels(processor.name).inc(processor.rate * flow.seconds)

    def show_crew(self, crew: Crew) -> None:
        for state in ("joining", "running", "stopping", "gone"):
            self.workers.labels(state).set(sum(w.state == state for w in crew.workers))
        for processor in dict.fromkeys(p.processor for p in crew.places):
            mine = [p for p in crew.places if p.processor == processor]
            for state in STATES:
                count = sum(p.standbys for p in mine) if state == "standby" else sum(p.state == state for p in mine)
                self.tasks.labels(processor, state).set(count)
        restoring = [p.task for p in crew.places if p.task is not None and p.task.state == "restoring"]
        self.restore_done.set(sum(t.restored for t in restoring))
        self.restore_wanted.set(sum(t.to_restore for t in restoring))
