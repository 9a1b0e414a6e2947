"""Members of classic groups by hand: what a coordinator answers to each, in each state of the group."""

import asyncio
import datetime
from typing import Any

import pytest
from kio.schema.errors import ErrorCode

from tests.streams.broker.clients import Clients, Wire, eventually

OFFSET_COMMIT, OFFSET_FETCH, JOIN, HEARTBEAT, LEAVE, SYNC, DESCRIBE = 8, 9, 11, 12, 13, 14, 15
DELETE_GROUPS, OFFSET_DELETE = 42, 47
# What a consumer says it subscribes to (version 0 of ConsumerProtocolSubscription): topic t.
SUBSCRIPTION = b"\0\0\0\0\0\1\0\1t\xff\xff\xff\xff"


class Member:
    """One member on a connection of its own, for its joins wait."""

    def __init__(self, wire: Wire, *, instance: str | None = None, session_ms: int = 10_000) -> None:
        self.wire, self.instance = wire, instance
        self.id, self.generation, self.leader = "", -1, ""
        self.session = datetime.timedelta(milliseconds=session_ms)
        self.members: list[str] = []

    async def join(self, *protocols: str, kind: str = "consumer", version: int = 9, **more: Any) -> ErrorCode:
        fields = {
            "group_id": more.get("group", "g"),
            "member_id": self.id,
            "group_instance_id": self.instance,
            "session_timeout": more.get("session", self.session),
            "rebalance_timeout": datetime.timedelta(seconds=10),
            "protocol_type": kind,
            "protocols": [{"name": name, "metadata": SUBSCRIPTION} for name in protocols or ("range",)],
        }
        answer = await self.wire.ask(JOIN, version, **fields)
        if answer.error_code is ErrorCode.member_id_required and more.get("again", True):
            self.id = answer.member_id
            answer = await self.wire.ask(JOIN, version, **{**fields, "member_id": self.id})
        if answer.error_code in (ErrorCode.none, ErrorCode.member_id_required):
            self.id, self.generation, self.leader = answer.member_id, answer.generation_id, answer.leader
            self.members = [member.member_id for member in answer.members]
        self.joined = answer
        assert isinstance(answer.error_code, ErrorCode)
        return answer.error_code

    async def sync(self, assignments: dict[str, bytes] | None = None, **more: Any) -> Any:
        """The error, or the assignment."""
        answer = await self.wire.ask(
            SYNC,
            5,
            **self._self(**more),
            protocol_type=more.get("kind", "consumer"),
            protocol_name=more.get("protocol", "range"),
            assignments=[{"member_id": name, "assignment": given} for name, given in (assignments or {}).items()],
        )
        return answer.error_code if answer.error_code is not ErrorCode.none else answer.assignment

    async def heartbeat(self, **more: Any) -> ErrorCode:
        answer = await self.wire.ask(HEARTBEAT, 4, **self._self(**more))
        assert isinstance(answer.error_code, ErrorCode)
        return answer.error_code

    async def leave(self, *members: dict[str, Any], group: str = "g") -> list[ErrorCode]:
        gone = members or ({"member_id": self.id, "group_instance_id": self.instance},)
        answer = await self.wire.ask(LEAVE, 5, group_id=group, members=list(gone))
        return [member.error_code for member in answer.members] or [answer.error_code]

    async def commit(self, *, version: int = 8, **more: Any) -> ErrorCode:
        fields = self._self(**more)
        entry = {"partition_index": 0, "committed_offset": more.get("offset", 5), "committed_metadata": ""}
        fields["generation_id_or_member_epoch"] = fields.pop("generation_id")
        answer = await self.wire.ask(OFFSET_COMMIT, version, **fields, topics=[{"name": "t", "partitions": [entry]}])
        code = answer.topics[0].partitions[0].error_code
        assert isinstance(code, ErrorCode)
        return code

    def _self(self, **more: Any) -> dict[str, Any]:
        return {
            "group_id": more.get("group", "g"),
            "member_id": more.get("member", self.id),
            "group_instance_id": more.get("instance", self.instance),
            "generation_id": more.get("generation", self.generation),
        }


class Crowd:
    """Members of the group g."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients

    async def member(self, **settings: Any) -> Member:
        return Member(await self.clients.wire(), **settings)

    async def stable(self, **settings: Any) -> Member:
        """A lone member with an assignment."""
        member = await self.member(**settings)
        assert await member.join() is ErrorCode.none
        assert await member.sync({member.id: b"all"}) == b"all"
        return member

    async def pair(self) -> tuple[Member, Member]:
        """Two members; the first leads."""
        first, second = await self.stable(), await self.member()
        joining = asyncio.create_task(second.join())
        await self.asked_to_rejoin(first)
        assert await first.join() is ErrorCode.none
        assert await joining is ErrorCode.none
        waiting = asyncio.create_task(second.sync())
        assert await first.sync({first.id: b"1", second.id: b"2"}) == b"1"
        assert await waiting == b"2"
        return first, second

    async def asked_to_rejoin(self, member: Member) -> None:
        async def asked() -> bool:
            return await member.heartbeat() is ErrorCode.rebalance_in_progress

        await eventually(asked)

    async def state(self) -> str:
        answer = await (await self.clients.wire()).ask(DESCRIBE, 5, groups=("g",))
        return str(answer.groups[0].group_state)


@pytest.fixture
async def crowd(clients: Clients) -> Crowd:
    await clients.topic("t")
    return Crowd(clients)


async def test_a_member_is_told_its_id_and_then_joins_with_it(crowd: Crowd) -> None:
    member = await crowd.member()
    assert await member.join(again=False) is ErrorCode.member_id_required
    assert member.id.startswith("wire-")
    assert await member.join() is ErrorCode.none
    assert (member.generation, member.leader, member.members) == (1, member.id, [member.id])


async def test_one_leads_and_each_gets_its_own(crowd: Crowd) -> None:
    first, second = await crowd.pair()
    assert (first.leader, second.leader) == (first.id, first.id)
    assert (set(first.members), second.members) == ({first.id, second.id}, [])
    assert (first.generation, second.generation) == (2, 2)
    assert await second.sync() == b"2"  # its answer was lost


async def test_strangers_and_old_generations_are_refused(crowd: Crowd) -> None:
    member = await crowd.stable()
    for ask in (member.heartbeat, member.sync, member.commit):
        assert await ask(generation=9) is ErrorCode.illegal_generation
        assert await ask(member="stranger") is ErrorCode.unknown_member_id
    assert await member.heartbeat(group="nobodys") is ErrorCode.unknown_member_id
    assert await member.sync(group="nobodys") is ErrorCode.unknown_member_id
    assert await member.leave({"member_id": "stranger"}) == [ErrorCode.unknown_member_id]
    assert await (await crowd.member()).commit() is ErrorCode.unknown_member_id
    member.id = "stranger"
    assert await member.join() is ErrorCode.unknown_member_id


async def test_offsets_are_committed_for_a_generation_or_for_an_empty_group(crowd: Crowd) -> None:
    outsider = await crowd.member()
    assert await outsider.commit() is ErrorCode.none
    assert await outsider.commit(generation=3, member="m") is ErrorCode.unknown_member_id
    assert await outsider.commit(group="new", generation=3, member="m") is ErrorCode.illegal_generation
    assert await outsider.commit(group="new", member="m") is ErrorCode.none
    assert await outsider.commit(group="") is ErrorCode.none  # as clients of old did
    member = await crowd.stable()
    assert await member.commit() is ErrorCode.none
    joining = asyncio.create_task((await crowd.member()).join())
    await crowd.asked_to_rejoin(member)
    assert await member.commit() is ErrorCode.none  # what was worked before the rebalance
    assert await member.join() is ErrorCode.none
    await joining
    assert await member.commit() is ErrorCode.rebalance_in_progress


async def test_protocols_must_be_common_to_all(crowd: Crowd) -> None:
    member = await crowd.stable()
    stranger = await crowd.member()
    assert await stranger.join("other") is ErrorCode.inconsistent_group_protocol
    assert await stranger.join(kind="connect") is ErrorCode.inconsistent_group_protocol
    assert await member.sync(protocol="other") is ErrorCode.inconsistent_group_protocol
    assert await member.sync(kind="connect") is ErrorCode.inconsistent_group_protocol


async def test_joins_that_make_no_sense_are_refused(crowd: Crowd) -> None:
    member = await crowd.member()
    assert await member.join(group="") is ErrorCode.invalid_group_id
    for seconds in (0.01, 10_000):
        session = datetime.timedelta(seconds=seconds)
        assert await member.join(session=session) is ErrorCode.invalid_session_timeout
    member.id = "made-up"
    assert await member.join() is ErrorCode.unknown_member_id


async def test_a_member_falls_silent_and_the_other_goes_on(crowd: Crowd) -> None:
    member = await crowd.stable(session_ms=8_000)
    silent = await crowd.member(session_ms=400)
    joining = asyncio.create_task(silent.join())
    await crowd.asked_to_rejoin(member)
    await member.join()
    await joining
    await member.sync({member.id: b"1", silent.id: b"2"})
    await crowd.asked_to_rejoin(member)
    assert await silent.heartbeat() is ErrorCode.unknown_member_id
    assert await member.join() is ErrorCode.none
    assert member.members == [member.id]


async def test_leaving_makes_the_others_join_again_and_the_last_leaves_the_group_empty(crowd: Crowd) -> None:
    first, second = await crowd.pair()
    assert await first.leave() == [ErrorCode.none]
    assert await second.heartbeat() is ErrorCode.rebalance_in_progress
    assert await second.join() is ErrorCode.none
    assert second.leader == second.id
    assert await second.leave() == [ErrorCode.none]
    assert await crowd.state() == "Empty"


async def test_a_static_member_takes_its_place_again(crowd: Crowd) -> None:
    member = await crowd.stable(instance="i")
    heir = await crowd.member(instance="i")
    assert await heir.join() is ErrorCode.none
    assert (heir.generation, heir.id == member.id, heir.joined.skip_assignment) == (1, False, True)
    assert await heir.sync() == b"all"
    for ask in (member.heartbeat, member.sync, member.commit):
        assert await ask() is ErrorCode.fenced_instance_id
    assert await member.join() is ErrorCode.fenced_instance_id
    assert await member.leave() == [ErrorCode.fenced_instance_id]
    assert await heir.heartbeat() is ErrorCode.none
    stranger = {"member_id": "", "group_instance_id": "unknown"}
    assert await heir.leave({"member_id": "", "group_instance_id": "i"}, stranger) == [
        ErrorCode.none,
        ErrorCode.unknown_member_id,
    ]


async def test_a_static_member_starts_a_rebalance_only_when_the_groups_protocol_changes(crowd: Crowd) -> None:
    await crowd.stable(instance="i")
    for protocols, generation in ((("range", "sticky"), 1), (("sticky",), 2)):
        heir = await crowd.member(instance="i")
        assert await heir.join(*protocols) is ErrorCode.none
        assert heir.generation == generation


async def test_groups_in_use_are_neither_deleted_nor_are_their_offsets(crowd: Crowd) -> None:
    member = await crowd.stable()
    await member.commit()
    topics = [{"name": "t", "partitions": [{"partition_index": 0}]}]
    deleted = await member.wire.ask(DELETE_GROUPS, 2, groups_names=("g", "unknown", ""))
    codes = {found.group_id: found.error_code for found in deleted.results}
    assert (codes["g"], codes["unknown"]) == (ErrorCode.non_empty_group, ErrorCode.group_id_not_found)
    assert codes[""] in (ErrorCode.invalid_group_id, ErrorCode.group_id_not_found)
    answer = await member.wire.ask(OFFSET_DELETE, 0, group_id="g", topics=topics)
    assert answer.topics[0].partitions[0].error_code is ErrorCode.group_subscribed_to_topic
    unknown = await member.wire.ask(OFFSET_DELETE, 0, group_id="unknown", topics=topics)
    assert unknown.error_code is ErrorCode.group_id_not_found
    await member.leave()
    answer = await member.wire.ask(OFFSET_DELETE, 0, group_id="g", topics=topics)
    assert answer.topics[0].partitions[0].error_code is ErrorCode.none


@pytest.mark.parametrize("version", [5, 6])
async def test_a_group_that_is_not_there_is_dead(crowd: Crowd, version: int) -> None:
    wire = await crowd.clients.wire()
    (found,) = (await wire.ask(DESCRIBE, version, groups=("nobodys",))).groups
    wanted = ErrorCode.group_id_not_found if version >= 6 else ErrorCode.none
    assert (found.group_state, found.error_code) == ("Dead", wanted)


async def test_offsets_of_nobody_are_minus_one(crowd: Crowd) -> None:
    wire = await crowd.clients.wire()
    group = {"group_id": "nobodys", "topics": [{"name": name, "partition_indexes": (0,)} for name in ("t", "nowhere")]}
    answer = await wire.ask(OFFSET_FETCH, 9, groups=[group, {"group_id": "nobodys", "topics": None}])
    asked, everything = answer.groups
    seen = [(topic.partitions[0].committed_offset, topic.partitions[0].error_code.name) for topic in asked.topics]
    assert (seen, everything.topics) == ([(-1, "none"), (-1, "none")], ())
