"""The command, as a process: what it prints, and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from headrace.streams.address import Address
from headrace.streams.admin import ensure_topics
from headrace.streams.publisher import Row, encode
from headrace.streams.topics import Topic

from tests import crew, shop
from tests.scene import ROOT, fresh, order, order_line, write


def headrace(*arguments: str, stdin: bytes = b"", home: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_HOME": str(home or ROOT / ".none")}
    environment.pop("HEADRACE_BROKER", None)
    command = [sys.executable, "-m", "headrace.command", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, env=environment, timeout=60)


def lines(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_bad_lines_are_told_by_number_and_the_others_are_published(broker: Address, tmp_path: Path) -> None:
    file = tmp_path / "lines.ndjson"
    good = json.dumps(order()).encode()
    file.write_bytes(b"\n".join([good, b'{"invoice": 7}', b"", b"\xff", good, b"{" + b"x" * 1_500_000, good]))
    options = ("--broker", str(broker), "--program", str(ROOT / "tests" / "shop.py"))
    # The topic of the program itself, so that its contract is found.
    asyncio.run(ensure_topics(broker, [shop.ORDERS]))
    done = headrace("publish", "orders", str(file), *options)
    told = done.stderr.decode()
    assert done.returncode == 1
    assert "line 2: Expected `str`, got `int` (field invoice)" in told
    assert "line 4: the line is not UTF-8" in told
    assert "line 6: the value has 1,00" in told
    assert "published 3 events to orders; 3 bad lines were left out" in told
    assert "Traceback" not in told


def test_lines_without_a_known_key_are_refused_where_a_topic_has_several_partitions(broker: Address) -> None:
    topic, line = fresh(broker), json.dumps(order()).encode()
    done = headrace("publish", topic.name, "-", "--broker", str(broker), stdin=line)
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"headrace: nothing tells here which field is the key of {topic.name}, and without it events come to any of "
        "its 2 partitions, where workers reject them: name the program (--program shop.py) or the field (--key FIELD)\n"
    )
    done = headrace("publish", topic.name, "-", "--broker", str(broker), "--key", "customer", stdin=line)
    assert done.returncode == 0


def test_lines_to_a_topic_that_the_program_writes_are_refused(broker: Address) -> None:
    asyncio.run(ensure_topics(broker, [shop.ORDERS, shop.PREDICTIONS]))
    options = ("--broker", str(broker), "--program", str(ROOT / "tests" / "shop.py"))
    done = headrace("publish", "predictions.returns", "-", *options, stdin=b"{}")
    assert done.returncode == 1
    told = b"headrace: topic predictions.returns is written by the program, not by publishers: publish to an event"
    assert done.stderr.startswith(told)


def test_one_event_is_told_as_one(broker: Address) -> None:
    topic = fresh(broker)
    options = ("--broker", str(broker), "--key", "customer")
    told = headrace("publish", topic.name, "-", *options, stdin=b'{"customer":1}\n{}\n').stderr.decode()
    assert told.splitlines()[-1] == f"published 1 event to {topic.name}; 1 bad line was left out"


def test_strict_stops_at_the_first_bad_line(broker: Address, tmp_path: Path) -> None:
    topic = fresh(broker)
    options = ("--broker", str(broker), "--key", "customer", "--strict")
    done = headrace("publish", topic.name, "-", *options, stdin=b'{"customer":1}\n{}\n')
    assert done.returncode == 1
    assert done.stderr.decode() == "headrace: -, line 2: the value lacks the key field customer (field customer)\n"


def test_lines_whose_times_look_like_seconds_are_published_and_told_of_once(broker: Address, tmp_path: Path) -> None:
    program = tmp_path / "ticks.py"
    program.write_text(
        "import headrace as hr\n"
        "class Tick(hr.Event, topic='ticks', key='name', time='at'):\n    name: str\n    at: int\n"
        "class Count(hr.Features, of=Tick, by='name'):\n    n = hr.count('1h')\n"
        "app = hr.App('ticking', features=[Count])\n"
    )
    asyncio.run(ensure_topics(broker, [Topic("ticks", "event", 1)]))
    rows = b'{"name": "a", "at": 1700000000}\n' * 3 + b'{"name": "a", "at": 1700000000000}\n[1]\n{"name"\n'
    done = headrace("publish", "ticks", "-", "--broker", str(broker), "--program", str(program), stdin=rows)
    told = done.stderr.decode().splitlines()
    assert told[0].startswith("-, line 5: Expected `object`, got `array`: an event is one JSON object, in a file one a")
    assert told[1].endswith("an event is one JSON object, in a file one a line (NDJSON)")
    assert told[2] == (
        "-, line 1: at=1700000000 looks like seconds, and an integer event time is milliseconds: it is taken for "
        "1970-01-20T16:13:20+00:00 (and 2 more lines like it)"
    )
    assert told[3] == "published 4 events to ticks; 2 bad lines were left out"


def test_records_are_printed_as_ndjson_in_a_pipe(broker: Address) -> None:
    topic = fresh(broker, partitions=1)
    write(broker, topic.name, [encode(order_line(invoice=str(i))) for i in range(5)])
    done = headrace("subscribe", topic.name, "--from", "earliest", "--max", "3", "--broker", str(broker))
    assert done.returncode == 0
    assert [line["value"]["invoice"] for line in lines(done.stdout)] == ["0", "1", "2"]
    assert lines(done.stdout)[0]["key"] == "13085"
    assert done.stderr == b""


def test_a_silent_topic_ends_after_the_timeout(broker: Address) -> None:
    done = headrace("subscribe", fresh(broker).name, "--timeout", "0.3", "--broker", str(broker))
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_reader_that_has_enough_is_no_error(broker: Address) -> None:
    topic = fresh(broker, partitions=1)
    write(broker, topic.name, [encode(order_line(invoice=str(i))) for i in range(5000)])
    command = (
        f"{sys.executable} -m headrace.command subscribe {topic.name} --from earliest --broker {broker} | head -n 1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, cwd=ROOT, timeout=60)
    assert len(lines(done.stdout)) == 1
    assert done.stderr == b""


def test_ctrl_c_ends_quietly_with_130(broker: Address) -> None:
    topic = fresh(broker, partitions=1)
    write(broker, topic.name, [encode(order_line())])
    command = ["subscribe", topic.name, "--from", "earliest", "--broker", str(broker)]
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.command", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == (b"", b"")


def test_topics_and_status_are_ndjson_in_a_pipe(broker: Address) -> None:
    topic = fresh(broker, partitions=1)
    write(broker, topic.name, [encode(order_line())] * 3)
    done = headrace("topics", "--broker", str(broker))
    assert done.returncode == 0
    [mine] = [line for line in lines(done.stdout) if line["topic"] == topic.name]
    assert (mine["partitions"], mine["records"]) == (1, 3)
    derived = fresh(broker, shop.PREDICTIONS)
    write(broker, derived.name, [Row(b"k", b"{}")])
    status = headrace("status", "--broker", str(broker))
    assert status.returncode == 0
    told = {"report": "topics", "topic": topic.name, "kind": "event", "records": 3, "exact": True, "records/s": 0.0}
    assert told in lines(status.stdout)
    # Nothing but the broker is known, and their names tell what is derived.
    kinds = {line["topic"]: line["kind"] for line in lines(status.stdout) if line["report"] == "topics"}
    assert kinds[derived.name] == "predictions"
    assert {"topic": derived.name, "kind": "predictions"}.items() <= next(
        line for line in lines(headrace("topics", "--broker", str(broker)).stdout) if line["topic"] == derived.name
    ).items()


def test_status_tells_of_the_workers_and_their_tasks(broker: Address) -> None:
    restoring = crew.task(1, state="restoring", restored=1, to_restore=4)
    # Told ahead of time: the command takes seconds to start where others compute.
    crew.tell(broker, crew.worker(1, crew.task(0, lag=7), ago=-60), crew.worker(2, restoring, ago=-60))
    crew.tell(broker, crew.worker(3, ago=60))
    told = lines(headrace("status", "--broker", str(broker)).stdout)
    workers = {w["worker"]: w for w in told if w["report"] == "workers"}
    tasks = {(t["processor"], t["partition"]): t for t in told if t["report"] == "tasks"}
    assert {n: w["state"] for n, w in workers.items()} == {"w1": "running", "w2": "running", "w3": "gone"}
    assert (tasks["orders", 0]["worker"], tasks["orders", 0]["lag"]) == ("h:1", 7)
    assert (tasks["orders", 1]["state"], tasks["orders", 1]["restored"]) == ("restoring", 0.25)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("topics",), 1, "no local stack runs from this folder"),
        (("topics", "--broker", "nowhere"), 1, "'nowhere' is not the address of a broker"),
        (("topics", "--broker", "127.0.0.1:1"), 1, "no broker answers at kafka://127.0.0.1:1"),
        (("run", "missing.py"), 1, "there is no file missing.py"),
        (("run", "tests/shop.py", "--host", "0.0.0.0"), 1, "without a token"),
        (("run", "tests/shop.py", "--broker", "127.0.0.1:1"), 1, "no broker answers at kafka://127.0.0.1:1"),
        (
            ("subscribe", "orders", "--from", "yesterday", "--broker", "127.0.0.1:1"),
            1,
            "'yesterday' is no place to start",
        ),
        (("publish", "orders", "missing.ndjson", "--broker", "127.0.0.1:1"), 1, "missing.ndjson cannot be read"),
        (("publish",), 2, "Missing argument"),
        (("no-such-command",), 2, "No such command"),
        (("subscribe", "orders", "--max", "0"), 2, "Invalid value for"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(
    arguments: tuple[str, ...], code: int, told: str, tmp_path: Path
) -> None:
    done = headrace(*arguments, home=tmp_path)
    assert done.returncode == code
    assert told in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert "starting" not in done.stderr.decode(), "what is refused does not start"
    assert done.stdout == b""
