"""The classic group protocol without sockets: a clock that is turned by hand, answers that are collected."""

from collections.abc import Callable
from pathlib import Path

import pytest
from headrace.streams.broker import Limits
from headrace.streams.broker.coordinator import GroupCoordinator
from headrace.streams.broker.errors import Refusal
from headrace.streams.broker.groups import Joined, JoinRequest, State, Synced
from headrace.streams.broker.store import Store
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import ManualClock

LIMITS = Limits(session_timeout_min_ms=1_000, group_members=3)
SESSION, REBALANCE = 10_000, 30_000


class Desk:
    """A coordinator and what it has answered."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.store = Store(folder)
        self.groups = GroupCoordinator(self.store, LIMITS)
        self.clock = clock

    def join(
        self,
        member: str = "",
        *,
        instance: str | None = None,
        known: bool = False,
        protocols: tuple[tuple[str, bytes], ...] = (("range", b"m"),),
        session: int = SESSION,
    ) -> list[Joined]:
        answers: list[Joined] = []
        request = JoinRequest(member, instance, "client", "/h", session, REBALANCE, "consumer", protocols, known, known)
        self.groups.join("g", request, answers.append, self.clock.now_ms)
        return answers

    def sync(self, joined: Joined, assignments: dict[str, bytes] | None = None) -> list[Synced]:
        answers: list[Synced] = []
        self.groups.member_of("g").sync(
            joined.member_id,
            None,
            joined.generation,
            (None, None),
            assignments or {},
            answers.append,
            self.clock.now_ms,
        )
        return answers

    def heartbeat(self, joined: Joined) -> None:
        self.groups.member_of("g").heartbeat(joined.member_id, None, joined.generation, self.clock.now_ms)

    def pass_time(self, ms: int) -> None:
        self.clock.advance(ms)
        self.groups.tick(self.clock.now_ms)

    def stable_pair(self) -> tuple[Joined, Joined]:
        """Two members with assignments; the first leads."""
        first = self.join()[0]
        second = self.join()
        (first,) = self.join(first.member_id)
        self.sync(second[0])
        self.sync(first, {first.member_id: b"1", second[0].member_id: b"2"})
        assert self.state is State.STABLE
        return first, second[0]

    @property
    def state(self) -> State:
        return self.groups.member_of("g").state


@pytest.fixture
def desk(tmp_path: Path, clock: ManualClock) -> Desk:
    return Desk(tmp_path, clock)


def refused(act: Callable[[], object]) -> ErrorCode:
    with pytest.raises(Refusal) as caught:
        act()
    return caught.value.code


def test_the_first_member_leads_and_sees_all_members(desk: Desk) -> None:
    (joined,) = desk.join()
    assert (joined.generation, joined.leader, joined.protocol) == (1, joined.member_id, "range")
    assert joined.members == ((joined.member_id, None, b"m"),)


def test_only_the_leader_sees_the_members(desk: Desk) -> None:
    first, second = desk.stable_pair()
    assert (len(first.members), second.members) == (2, ())
    assert (first.generation, second.generation) == (2, 2)


def test_a_newcomer_waits_until_the_others_have_joined_again(desk: Desk) -> None:
    (first,) = desk.join()
    waiting = desk.join()
    assert waiting == []
    assert refused(lambda: desk.heartbeat(first)) is ErrorCode.rebalance_in_progress
    desk.join(first.member_id)
    assert waiting[0].generation == 2


def test_members_get_their_own_assignments_when_the_leader_has_assigned(desk: Desk) -> None:
    (first,) = desk.join()
    second = desk.join()
    (first,) = desk.join(first.member_id)
    waiting = desk.sync(second[0])
    assert waiting == []
    (own,) = desk.sync(first, {first.member_id: b"1", second[0].member_id: b"2"})
    assert (own.assignment, waiting[0].assignment) == (b"1", b"2")


def test_a_modern_client_is_told_its_id_before_it_joins(desk: Desk) -> None:
    (promised,) = desk.join(known=True)
    assert promised.error is ErrorCode.member_id_required
    (joined,) = desk.join(promised.member_id, known=True)
    assert (joined.error, joined.member_id) == (ErrorCode.none, promised.member_id)


def test_a_silent_member_is_removed_and_the_others_rebalance(desk: Desk) -> None:
    first, second = desk.stable_pair()
    desk.pass_time(SESSION - 1)
    desk.heartbeat(first)
    desk.pass_time(1)
    assert refused(lambda: desk.heartbeat(second)) is ErrorCode.unknown_member_id
    (again,) = desk.join(first.member_id)
    assert (again.generation, len(again.members)) == (3, 1)


def test_who_does_not_join_again_in_time_is_left_behind(desk: Desk) -> None:
    first, second = desk.stable_pair()
    third = desk.join()
    rejoined = desk.join(first.member_id)
    for _ in range(REBALANCE // SESSION + 1):
        desk.pass_time(SESSION - 1)
    assert third[0].generation == rejoined[0].generation == 3
    assert refused(lambda: desk.sync(second)) is ErrorCode.unknown_member_id


def test_a_leader_that_never_assigns_is_replaced(desk: Desk) -> None:
    (first,) = desk.join(session=REBALANCE * 2)
    second = desk.join(session=REBALANCE * 2)
    (first,) = desk.join(first.member_id, session=REBALANCE * 2)
    waiting = desk.sync(second[0])
    desk.pass_time(REBALANCE)
    assert waiting[0].error is ErrorCode.rebalance_in_progress
    (again,) = desk.join(second[0].member_id, session=REBALANCE * 2)
    assert again.leader == second[0].member_id


def test_leaving_starts_a_rebalance_and_the_last_one_empties_the_group(desk: Desk) -> None:
    first, second = desk.stable_pair()
    desk.groups.member_of("g").leave(second.member_id, None, desk.clock.now_ms)
    assert refused(lambda: desk.heartbeat(first)) is ErrorCode.rebalance_in_progress
    desk.groups.member_of("g").leave(first.member_id, None, desk.clock.now_ms)
    assert desk.state is State.EMPTY


def test_a_lost_answer_is_given_again(desk: Desk) -> None:
    (first,) = desk.join()
    (again,) = desk.join(first.member_id)
    assert again.generation == first.generation
    desk.sync(first, {first.member_id: b"1"})
    assert desk.sync(first)[0].assignment == b"1"


def test_an_old_generation_is_refused(desk: Desk) -> None:
    first, _ = desk.stable_pair()
    old = Joined(ErrorCode.none, first.member_id, 1)
    assert refused(lambda: desk.heartbeat(old)) is ErrorCode.illegal_generation
    commit = lambda: desk.groups.check_commit("g", first.member_id, None, 1, desk.clock.now_ms)  # noqa: E731
    assert refused(commit) is ErrorCode.illegal_generation


def test_nobody_commits_for_a_group_with_members_without_being_one(desk: Desk) -> None:
    desk.groups.check_commit("g", "", None, -1, desk.clock.now_ms)
    desk.stable_pair()
    commit = lambda: desk.groups.check_commit("g", "", None, -1, desk.clock.now_ms)  # noqa: E731
    assert refused(commit) is ErrorCode.unknown_member_id


def test_a_static_member_takes_its_place_again_without_a_rebalance(desk: Desk) -> None:
    (first,) = desk.join(instance="i")
    desk.sync(first, {first.member_id: b"1"})
    (again,) = desk.join(instance="i")
    assert (again.generation, again.member_id != first.member_id) == (1, True)
    assert desk.sync(again)[0].assignment == b"1"
    stale = lambda: desk.groups.member_of("g").heartbeat(first.member_id, "i", 1, desk.clock.now_ms)  # noqa: E731
    assert refused(stale) is ErrorCode.fenced_instance_id


def test_the_protocol_most_members_like_best_is_taken(desk: Desk) -> None:
    (first,) = desk.join(protocols=(("range", b""), ("sticky", b"")))
    second = desk.join(protocols=(("sticky", b""), ("range", b"")))
    third = desk.join(protocols=(("sticky", b""), ("range", b"")))
    desk.join(first.member_id, protocols=(("range", b""), ("sticky", b"")))
    assert second[0].protocol == third[0].protocol == "sticky"


def test_a_member_without_a_common_protocol_is_refused(desk: Desk) -> None:
    desk.join()
    assert refused(lambda: desk.join(protocols=(("other", b""),))) is ErrorCode.inconsistent_group_protocol


def test_a_group_has_a_greatest_size(desk: Desk) -> None:
    for _ in range(LIMITS.group_members):
        desk.join()
    assert refused(desk.join) is ErrorCode.group_max_size_reached


def test_sessions_have_a_least_and_a_greatest_length(desk: Desk) -> None:
    assert refused(lambda: desk.join(session=999)) is ErrorCode.invalid_session_timeout
    assert refused(lambda: desk.join(session=1_800_001)) is ErrorCode.invalid_session_timeout


def test_a_promised_id_that_is_not_used_holds_nobody_up_for_long(desk: Desk) -> None:
    (first,) = desk.join(known=False, session=SESSION * 2)
    desk.join(known=True)
    again = desk.join(first.member_id, protocols=(("range", b"changed"),), session=SESSION * 2)
    assert again == []
    desk.pass_time(SESSION)
    assert again[0].generation == 2
