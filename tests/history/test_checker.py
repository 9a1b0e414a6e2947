"""What the checker finds in a history of a few lines, and what looks like it and is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.history.checker import Kind, anomalies
from tests.history.history import (
    End,
    Fault,
    GroupOffset,
    History,
    Operation,
    Outcome,
    Poll,
    Position,
    Send,
    Transaction,
    load,
)

OK, FAIL, UNKNOWN = Outcome.OK, Outcome.FAIL, Outcome.UNKNOWN


Operations = Operation | list[Operation]


def sent(value: str, at: int | None = None, outcome: Outcome = OK, *, when: float = 1.0, **more: Any) -> Send:
    """One record to a/0, sent at `when` and acknowledged half a second later."""
    ended = None if outcome is UNKNOWN else when + 0.5
    fields: dict[str, Any] = {"producer": "p", "topic": "a", "partition": 0, **more}
    return Send(value=value, began=when, ended=ended, outcome=outcome, offset=at, **fields)


def transaction(
    name: str = "t", *, commit: bool = True, outcome: Outcome = OK, closing: float | None = 5.0, **more: Any
) -> Transaction:
    ended = None if outcome is UNKNOWN or closing is None else closing + 0.5
    fields: dict[str, Any] = {"began": 0.5, "timeout": 60.0, **more}
    return Transaction(id=name, commit=commit, outcome=outcome, closing=closing, ended=ended, **fields)


def polled(*records: tuple[int, str], when: float = 8.0, committed_only: bool = True, **more: Any) -> Poll:
    fields: dict[str, Any] = {"consumer": "c", "session": 1, "topic": "a", **more}
    topic = fields.pop("topic")
    return Poll(
        committed_only=committed_only,
        began=when - 0.5,
        ended=when,
        records=[(topic, 0, offset, value) for offset, value in records],
        **fields,
    )


def last(*records: tuple[int, str], hidden: tuple[tuple[int, str], ...] = (), topic: str = "a") -> list[Operation]:
    """The last reading of a partition: what everyone sees, and what only a reader of everything does."""
    everything = sorted((*records, *hidden))
    return [
        polled(*everything, when=99, committed_only=False, final=True, consumer="last", topic=topic),
        polled(*records, when=99, final=True, consumer="last", topic=topic),
    ]


def offset(at: int, *, when: float, commit: bool = False, outcome: Outcome = OK, **more: Any) -> GroupOffset:
    fields: dict[str, Any] = {"group": "g", "topic": "a", "partition": 0, **more}
    ended = None if outcome is UNKNOWN else when + 0.5
    return GroupOffset(offset=at, began=when, ended=ended, commit=commit, outcome=outcome, **fields)


def end(at: int) -> End:
    return End(topic="a", partition=0, offset=at)


def kinds(*operations: Operations) -> set[Kind]:
    flat = [each for one in operations for each in (one if isinstance(one, list) else [one])]
    return {anomaly.kind for anomaly in anomalies(History(flat))}


def test_a_plain_history_has_no_anomalies() -> None:
    assert (
        kinds(
            sent("v", 0),
            sent("w", 1, when=2),
            polled((0, "v"), (1, "w")),
            last((0, "v"), (1, "w")),
            end(1),
        )
        == set()
    )


# Lost.


def test_an_acknowledged_record_that_is_not_there_is_lost() -> None:
    assert kinds(sent("v", 0), sent("w", 1, when=2), last((1, "w"))) == {Kind.LOST}


def test_a_record_that_was_read_and_is_gone_is_lost() -> None:
    assert kinds(sent("v", outcome=UNKNOWN), polled((0, "v")), last()) == {Kind.LOST}


def test_a_record_of_a_committed_transaction_that_is_not_there_is_lost() -> None:
    assert kinds(transaction(), sent("v", 0, transaction="t"), last()) == {Kind.LOST}


@pytest.mark.parametrize("there", [last(), last((0, "v"))])
def test_a_record_of_unknown_outcome_may_be_there_or_not(there: list[Operation]) -> None:
    assert kinds(sent("v", outcome=UNKNOWN), there) == set()


def test_a_record_of_an_aborted_transaction_need_not_be_there() -> None:
    assert kinds(transaction(commit=False), sent("v", 0, transaction="t"), last()) == set()


def test_a_record_that_a_group_passed_over_is_lost() -> None:
    made = sent("w", 0, topic="b", transaction="t", source=("a", 0, 1))
    history = (
        sent("u", 0),
        sent("v", 1, when=2),
        transaction(group="g", offsets=[("a", 0, 2)]),
        made,
        last((0, "u"), (1, "v")),
        last((0, "w"), topic="b"),
        offset(2, when=50, final=True),
    )
    assert kinds(*history) == {Kind.LOST}


# Doubled.


def test_a_record_that_is_there_twice_is_doubled() -> None:
    assert kinds(sent("v", 0), last((0, "v"), (1, "v"))) == {Kind.DOUBLED}


def test_a_client_that_is_not_idempotent_may_double_what_it_sends_again() -> None:
    assert kinds(sent("v", 1, idempotent=False), last((0, "v"), (1, "v"))) == set()


def test_a_record_read_again_after_going_back_is_not_doubled() -> None:
    assert kinds(sent("v", 0), polled((0, "v")), polled((0, "v"), session=2), last((0, "v"))) == set()


def test_a_record_that_was_processed_into_two_is_doubled() -> None:
    assert kinds(
        sent("v", 0),
        transaction(group="g", offsets=[("a", 0, 1)]),
        *(sent(value, topic="b", transaction="t", source=("a", 0, 0)) for value in ("w", "x")),
        last((0, "v")),
        last((0, "w"), (1, "x"), topic="b"),
    ) == {Kind.DOUBLED}


def test_a_record_processed_again_after_an_abort_is_not_doubled() -> None:
    history = (
        sent("v", 0),
        transaction("t", group="g", offsets=[("a", 0, 1)], commit=False),
        transaction("u", group="g", offsets=[("a", 0, 1)], closing=8.0),
        sent("w", 0, topic="b", transaction="t", source=("a", 0, 0)),
        sent("x", 2, topic="b", transaction="u", source=("a", 0, 0), when=6),
        last((0, "v")),
        last((2, "x"), hidden=((0, "w"),), topic="b"),
        offset(1, when=50, final=True),
    )
    assert kinds(*history) == set()


# Reordered.


def test_what_an_idempotent_client_sent_later_may_not_come_first() -> None:
    # Both under way at once, so that only the client's own order tells.
    assert kinds(sent("v", 1), sent("w", 0), last((0, "w"), (1, "v"))) == {Kind.REORDERED}


def test_what_two_clients_sent_at_once_may_be_in_any_order() -> None:
    assert kinds(sent("v", 1), sent("w", 0, producer="q"), last((0, "w"), (1, "v"))) == set()


def test_what_was_acknowledged_comes_before_what_was_sent_after_it() -> None:
    assert kinds(sent("v", 1), sent("w", 0, producer="q", when=2), last((0, "w"), (1, "v"))) == {Kind.REORDERED}


def test_what_is_of_unknown_outcome_may_come_in_late() -> None:
    history = sent("v", outcome=UNKNOWN), sent("w", 0, producer="q", when=2), last((0, "w"), (1, "v"))
    assert kinds(*history) == set()


# Two values.


def test_an_offset_has_one_value() -> None:
    early = polled((0, "w"), when=4)
    assert Kind.TWO_VALUES in kinds(sent("v", 0), sent("w", outcome=UNKNOWN), early, last((0, "v")))


def test_a_record_is_where_it_was_acknowledged() -> None:
    assert kinds(sent("v", 5), last((0, "v"))) == {Kind.TWO_VALUES}


def test_an_acknowledgement_without_an_offset_says_nothing_of_it() -> None:
    assert kinds(sent("v", None), last((7, "v"))) == set()


# Transactions.


def test_what_was_aborted_may_not_be_read() -> None:
    hidden = last(hidden=((0, "v"),))
    assert kinds(transaction(commit=False), sent("v", 0, transaction="t"), polled((0, "v")), hidden) == {
        Kind.ABORTED_READ
    }


def test_what_was_aborted_may_be_read_by_who_reads_everything() -> None:
    read = polled((0, "v"), committed_only=False)
    hidden = last(hidden=((0, "v"),))
    assert kinds(transaction(commit=False), sent("v", 0, transaction="t"), read, hidden) == set()


def test_an_abort_whose_answer_is_lost_is_no_commit() -> None:
    aborted = transaction(commit=False, outcome=UNKNOWN)
    assert kinds(aborted, sent("v", 0, transaction="t"), last((0, "v"))) == {Kind.ABORTED_READ}


def test_a_transaction_is_not_read_before_its_commit_was_asked_for() -> None:
    early = polled((0, "v"), when=4)
    assert kinds(transaction(closing=5), sent("v", 0, transaction="t"), early, last((0, "v"))) == {Kind.EARLY_READ}


def test_a_transaction_may_be_read_before_its_commit_was_answered() -> None:
    read = polled((0, "v"), when=5.2)
    assert kinds(transaction(closing=5), sent("v", 0, transaction="t"), read, last((0, "v"))) == set()


def test_who_reads_the_committed_waits_for_an_open_transaction() -> None:
    history = transaction(closing=5), sent("v", 0, transaction="t"), sent("w", 1), last((0, "v"), (1, "w"))
    assert kinds(*history, polled((1, "w"), when=4)) == {Kind.BEYOND_OPEN}


@pytest.mark.parametrize(
    "read",
    [
        polled((1, "w"), when=6),
        polled((1, "w"), when=4, committed_only=False),
        polled((0, "u"), when=4, topic="b"),
    ],
)
def test_an_ended_transaction_a_reader_of_everything_and_another_partition_do_not_wait(read: Poll) -> None:
    history = (
        transaction(closing=5, commit=False),
        sent("v", 0, transaction="t"),
        sent("w", 1),
        sent("u", 0, topic="b", producer="q"),
        last((1, "w"), hidden=((0, "v"),)),
        last((0, "u"), topic="b"),
    )
    assert kinds(*history, read) == set()


@pytest.mark.parametrize("timeout", [0.0, 2.0])
def test_a_transaction_that_the_broker_may_have_timed_out_holds_nobody(timeout: float) -> None:
    history = (
        transaction(closing=50, commit=False, outcome=UNKNOWN, timeout=timeout),
        sent("v", 0, transaction="t"),
        sent("w", 1),
        last((1, "w"), hidden=((0, "v"),)),
    )
    assert kinds(*history, polled((1, "w"), when=4)) == set()


def test_who_has_been_fenced_cannot_commit() -> None:
    send, hidden = sent("v", 0, transaction="t"), last(hidden=((0, "v"),))
    assert kinds(transaction(fenced=True, outcome=UNKNOWN), send, hidden) == set()
    assert kinds(transaction(fenced=True), send, hidden) == {Kind.ZOMBIE}
    assert kinds(transaction(fenced=True, outcome=UNKNOWN), send, last((0, "v"))) == {Kind.ABORTED_READ}


@pytest.mark.parametrize("outcome", [OK, UNKNOWN])
def test_a_transaction_is_there_as_a_whole_or_not_at_all(outcome: Outcome) -> None:
    parts = sent("v", 0, transaction="t"), sent("w", 0, transaction="t", topic="b")
    found = kinds(transaction(outcome=outcome), *parts, last((0, "v")), last(topic="b"))
    assert Kind.FRACTURED in found
    assert found - {Kind.FRACTURED} == ({Kind.LOST} if outcome is OK else set())


@pytest.mark.parametrize("there", [True, False])
def test_a_transaction_of_unknown_outcome_may_be_there_or_not(there: bool) -> None:
    parts = sent("v", 0, transaction="t"), sent("w", 0, transaction="t", topic="b")
    readings = (last((0, "v")), last((0, "w"), topic="b")) if there else (last(), last(topic="b"))
    assert kinds(transaction(outcome=UNKNOWN), *parts, *readings) == set()


def test_a_reader_may_get_a_transaction_in_two_polls() -> None:
    parts = sent("v", 0, transaction="t"), sent("w", 1, transaction="t", when=2)
    polls = polled((0, "v")), polled((1, "w"), when=9)
    assert kinds(transaction(), *parts, *polls, last((0, "v"), (1, "w"))) == set()


def test_the_offsets_of_a_transaction_that_is_there_are_there() -> None:
    done = transaction(outcome=UNKNOWN, group="g", offsets=[("a", 0, 4)])
    assert kinds(done, sent("v", 0, topic="b", transaction="t"), last((0, "v"), topic="b")) == set()
    lost = offset(-1, when=50, final=True)
    assert kinds(done, sent("v", 0, topic="b", transaction="t"), last((0, "v"), topic="b"), lost) == {Kind.FRACTURED}


def test_the_offsets_of_a_transaction_that_is_not_there_are_not_there() -> None:
    undone = transaction(outcome=UNKNOWN, group="g", offsets=[("a", 0, 4)])
    send = sent("v", 0, topic="b", transaction="t")
    assert kinds(undone, send, last(topic="b"), offset(-1, when=50, final=True)) == set()
    assert kinds(undone, send, last(topic="b"), offset(4, when=50, final=True)) == {Kind.FRACTURED}


# Groups and consumers.


def test_a_groups_offset_does_not_go_back() -> None:
    assert kinds(offset(5, when=1, commit=True), offset(3, when=2)) == {Kind.OFFSET_BACK, Kind.PHANTOM}
    committed = offset(3, when=1, commit=True), offset(5, when=2, commit=True)
    assert kinds(*committed, offset(3, when=3)) == {Kind.OFFSET_BACK}


def test_a_commit_of_unknown_outcome_may_have_happened_or_not() -> None:
    commits = offset(3, when=1, commit=True), offset(5, when=2, commit=True, outcome=UNKNOWN)
    for found in (3, 5):
        assert kinds(*commits, offset(found, when=4)) == set()


def test_what_is_looked_up_beside_a_commit_may_be_what_was_before() -> None:
    commits = offset(3, when=1, commit=True), offset(5, when=2, commit=True)
    assert kinds(*commits, offset(3, when=2.2)) == set()


def test_a_groups_offset_that_a_transaction_committed_does_not_go_back() -> None:
    done = transaction(group="g", offsets=[("a", 0, 4)], closing=5)
    parts = done, sent("v", 0, topic="b", transaction="t"), last((0, "v"), topic="b")
    assert kinds(*parts, offset(4, when=6)) == set()
    assert kinds(*parts, offset(-1, when=5.2)) == set()
    assert kinds(*parts, offset(-1, when=6)) == {Kind.OFFSET_BACK}


def test_an_offset_that_no_commit_asked_for_is_a_phantom() -> None:
    assert kinds(offset(3, when=1, commit=True), offset(6, when=2)) == {Kind.PHANTOM}
    assert kinds(offset(-1, when=2)) == set()


def test_a_poll_does_not_go_back() -> None:
    there = sent("v", 0), sent("w", 1, when=2), last((0, "v"), (1, "w"))
    assert kinds(*there, polled((0, "v"), (1, "w")), polled((1, "w"), when=9)) == {Kind.POLL_BACK}


def test_a_poll_skips_nothing() -> None:
    there = sent("u", 0), sent("v", 1, when=2), sent("w", 2, when=3), last((0, "u"), (1, "v"), (2, "w"))
    assert kinds(*there, polled((0, "u")), polled((2, "w"), when=9)) == {Kind.POLL_SKIP}
    start = Position(consumer="c", session=1, topic="a", partition=0, offset=0)
    assert kinds(*there, start, polled((1, "v"), (2, "w"))) == {Kind.POLL_SKIP}


def test_a_poll_skips_what_was_aborted() -> None:
    aborted = transaction(commit=False), sent("v", 1, transaction="t", when=2)
    there = sent("u", 0), *aborted, sent("w", 2, when=3), last((0, "u"), (2, "w"), hidden=((1, "v"),))
    assert kinds(*there, polled((0, "u")), polled((2, "w"), when=9)) == set()
    everything = {"committed_only": False}
    assert kinds(*there, polled((0, "u"), **everything), polled((2, "w"), when=9, **everything)) == {Kind.POLL_SKIP}


def test_a_new_session_may_begin_anywhere() -> None:
    there = sent("v", 0), sent("w", 1, when=2), last((0, "v"), (1, "w"))
    assert kinds(*there, polled((0, "v"), (1, "w")), polled((0, "v"), session=2), polled((1, "w"), session=3)) == set()


def test_what_a_group_has_passed_was_given_to_a_member() -> None:
    there = sent("v", 0), sent("w", 1, when=2), last((0, "v"), (1, "w"))
    passed = offset(2, when=9, commit=True), offset(2, when=50, final=True)
    first, second = polled((0, "v"), group="g"), polled((1, "w"), group="g", consumer="d")
    assert kinds(*there, *passed, first, second) == set()
    assert kinds(*there, *passed, first) == {Kind.POLL_SKIP}


# What was never sent, and what never comes.


def test_what_nobody_sent_is_a_phantom() -> None:
    assert kinds(last((0, "v"))) == {Kind.PHANTOM}


def test_what_was_refused_is_a_phantom() -> None:
    assert kinds(sent("v", outcome=FAIL), last()) == set()
    assert kinds(sent("v", outcome=FAIL), last((0, "v"))) == {Kind.PHANTOM}


def test_what_was_sent_elsewhere_is_a_phantom() -> None:
    assert kinds(sent("v", outcome=UNKNOWN, topic="b"), last((0, "v"))) == {Kind.PHANTOM}


def test_who_reads_everything_must_come_to_the_end() -> None:
    assert kinds(sent("v", 0), sent("w", 3, when=2), last((0, "v"), (3, "w")), end(3)) == set()
    short = last((0, "v"), hidden=((3, "w"),))
    assert Kind.STUCK in kinds(sent("v", 0), sent("w", 3, when=2), short, end(3))


def test_a_history_is_the_same_when_it_is_read_back(tmp_path: Path) -> None:
    operations: list[Operation] = [
        sent("v", 0, source=("a", 0, 1)),
        transaction(group="g", offsets=[("a", 0, 4)]),
        polled((0, "v")),
        Position(consumer="c", session=1, topic="a", partition=0, offset=0),
        offset(3, when=1),
        End(topic="a", partition=0, offset=3),
        Fault(kind="kill", began=1.0),
    ]
    History(operations).save(tmp_path / "history.jsonl")
    assert load(tmp_path / "history.jsonl").operations == operations
