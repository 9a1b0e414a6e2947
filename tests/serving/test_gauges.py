"""What the gateway tells Prometheus of topics and processors."""

from headrace.serving.gauges import Gauges
from headrace.streams.traffic import Flow, ProcessorFlow, TopicFlow


def test_what_is_written_and_processed_is_counted_and_a_burst_between_two_scrapes_is_not_missed() -> None:
    gauges = Gauges({})

    def told(name: str, **labels: str) -> float | None:
        return gauges.registry.get_sample_value(name, labels)

    for rate, seconds in ((0.0, 0.0), (200.0, 0.5), (0.0, 1.0), (0.0, 1.0)):
        topics = (TopicFlow("orders", "event", 8, 100, rate),)
        gauges.show(Flow(topics, (ProcessorFlow("orders", "shop.orders", None, rate / 2),), seconds=seconds))
    assert told("headrace_topic_written_total", topic="orders") == 100
    assert told("headrace_topic_records", topic="orders") == 100
    assert told("headrace_processor_processed_total", processor="orders") == 50
    assert told("headrace_processor_lag", processor="orders") == 0
