"""Workers and tasks as the gateway tells them: its API, its health, its metrics and its page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from headrace.serving import crew as drawing
from headrace.serving.gateway import Settings
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.roster import Crew, Roster
from headrace.streams.topics import Processor
from headrace.streams.workers import TOPIC, WorkerStatus

from tests.crew import end, task, tell, worker
from tests.scene import eventually, free_port, fresh, gateway_thread, url_of

PROCESSORS = (
    Processor("orders", "crew.orders", ("orders",), (), 8),
    Processor("learn.returns", "crew.learn.returns", ("outcomes.returns",), ()),
)

@pytest.fixture
def client(broker: Address) -> Iterator[httpx.Client]:
    settings = Settings("crew", broker, (fresh(broker),), PROCESSORS, port=free_port())
    asyncio.run(ensure_topics(broker, [TOPIC]))
    end(broker, "w1", "w2", "w3")
    with gateway_thread(settings) as app, httpx.Client(base_url=url_of(settings), trust_env=False) as made:
        eventually(lambda: bool(app.state.gateway.connected))
        yield made


def test_health_and_readiness_tell_what_workers_leave_undone(client: httpx.Client, broker: Address) -> None:
    eventually(lambda: client.get("/ready").json().get("tasks") == 9)
    health, ready = client.get("/health"), client.get("/ready")
    assert (health.status_code, ready.status_code) == (200, 503), "a restart of the gateway would not help"
    assert health.json()["status"] == ready.json()["status"] == "degraded"
    assert health.json()["reason"].startswith("no worker runs any of the 9 tasks")

    tell(broker, worker(1, *(task(n) for n in range(7))))
    eventually(lambda: client.get("/health").json()["workers"] == 1)
    assert client.get("/ready").status_code == 200
    assert client.get("/health").json()["reason"] == "nobody runs orders 7, learn.returns 0"

    tell(broker, worker(2, task(7, state="restoring", restored=5, to_restore=20), task(0, "learn.returns")))
    eventually(lambda: client.get("/health").json()["status"] == "ok")
    assert "reason" not in client.get("/ready").json()

    end(broker, "w1", "w2")
    eventually(lambda: client.get("/ready").status_code == 503)


def test_workers_and_tasks_are_told_as_they_are_now(client: httpx.Client, broker: Address) -> None:
    running = [task(n, lag=n, commits=10, aborts=1, fenced=2, watermark=1_275_955_200_000_000) for n in range(3)]
    tell(broker, worker(1, *running), worker(2, task(3, state="restoring", restored=5, to_restore=20)))
    tell(broker, worker(3, task(4), ago=60))
    eventually(lambda: len(client.get("/workers").json()["workers"]) == 3)
    told = client.get("/workers").json()
    assert [(w["worker"], w["tasks"], w["commits"], w["aborts"], w["fenced"]) for w in told["workers"][:2]] == [
        ("w1", 3, 30, 3, 6),
        ("w2", 1, 0, 0, 0),
    ]
    by_place = {(t["processor"], t["partition"]): t for t in told["tasks"]}
    assert len(by_place) == 9
    assert (by_place["orders", 2]["lag"], by_place["orders", 2]["watermark"]) == (2, "2010-06-08T00:00:00Z")
    assert (by_place["orders", 3]["state"], by_place["orders", 3]["restored"]) == ("restoring", 0.25)
    assert (by_place["orders", 7]["state"], by_place["orders", 7]["worker"]) == ("unowned", None)
    text = client.get("/metrics").text
    for line in (
        'headrace_tasks{processor="orders",state="restoring"} 1.0',
        'headrace_tasks{processor="learn.returns",state="unowned"} 1.0',
        'headrace_workers{state="running"}',
        "headrace_restore_done 5.0",
        "headrace_restore_wanted 20.0",
    ):
        assert line in text


def drawn(*statuses: WorkerStatus) -> str:
    return drawing.draw(crew_of(*statuses))


def crew_of(*statuses: WorkerStatus, processors: tuple[Processor, ...] = PROCESSORS) -> Crew:
    roster = Roster("crew", processors)
    for status in statuses:
        roster.take(status.worker, msgspec.json.encode(status))
    return roster.crew(time.time() * 1000)


def test_each_task_is_a_cell_that_tells_its_worker_and_its_state() -> None:
    text = drawn(
        worker(1, *(task(n, lag=1234) for n in range(4))),
        worker(2, task(4, state="restoring", restored=45, to_restore=100), task(5), task(0, state="standby")),
        worker(3, task(6), ago=60),
    )
    assert text.count('<li class="cell') == 9
    assert text.count('<li class="chip') == 3
    assert '<li class="cell running" title="orders 3: running, by h:1; lag 1,234' in text
    assert '<li class="cell restoring" style="--done: 45%"' in text
    assert "4<small>B 45%</small>" in text
    assert text.count('<li class="cell unowned"') == 3
    assert "nobody runs orders 6-7, learn.returns 0" in text
    assert "silent for 60 s" in text


def test_a_lone_worker_needs_no_letters() -> None:
    assert "<small>" not in drawn(worker(1, *(task(n) for n in range(8)), task(0, "learn.returns")))


def test_a_crowd_stays_readable() -> None:
    many = Processor("orders", "crew.orders", ("orders",), (), 1000)
    crowd = [worker(n, *(task(n * 10 + i) for i in range(10))) for n in range(99)]
    text = drawing.draw(crew_of(*crowd, processors=(many,)))
    assert text.count("<li") < 100
    assert "and 75 more" in text
    assert "990 of 1000 run" in text
    assert "nobody runs orders 990-999" in text


def test_what_a_worker_tells_of_itself_is_no_markup() -> None:
    bad = WorkerStatus(
        worker="<script>", app="crew", host='"><img src=x>', pid=1, started=1, time=int(time.time() * 1000),
        state="running", tasks=(task(0, "<b>"),),
    )  # fmt: skip
    text = drawing.draw(crew_of(bad, processors=()))
    assert "<script>" not in text
    assert "<img" not in text
    assert "<b><b>" not in text
