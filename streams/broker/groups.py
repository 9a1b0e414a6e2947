"""One consumer group of the classic protocol: members, generations, rebalances; no sockets, no timers.

A member's answer is a call of the function it gave (`Reply`), now or later; time is handed in. The rules are
those of Kafka's group coordinator: a rebalance ends when all members have joined or its time is over, one
member leads and assigns, and members that fall silent are removed.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from kio.schema.errors import ErrorCode

from .errors import Refusal
from .limits import Limits


class State(Enum):
    """By Kafka's names, as clients see them."""

    EMPTY = "Empty"
    PREPARING = "PreparingRebalance"
    COMPLETING = "CompletingRebalance"
    STABLE = "Stable"


@dataclass(frozen=True, slots=True)
class Joined:
    """The answer to JoinGroup."""

    error: ErrorCode
    member_id: str
    generation: int = -1
    protocol_type: str | None = None
    protocol: str | None = None
    leader: str = ""
    skip_assignment: bool = False
    members: tuple[tuple[str, str | None, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Synced:
    """The answer to SyncGroup."""

    error: ErrorCode
    protocol_type: str | None = None
    protocol: str | None = None
    assignment: bytes = b""


JoinReply: TypeAlias = Callable[[Joined], None]
SyncReply: TypeAlias = Callable[[Synced], None]
Protocols: TypeAlias = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class JoinRequest:
    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocol_type: str
    protocols: Protocols
    needs_known_id: bool
    """The client can be told its id first and join again with it (JoinGroup version 4 and later)."""
    can_skip_assignment: bool


@dataclass(slots=True)
class Member:
    id: str
    instance_id: str | None
    client_id: str
    client_host: str
    session_timeout_ms: int
    rebalance_timeout_ms: int
    protocols: Protocols
    expires_ms: int
    assignment: bytes = b""
    joining: JoinReply | None = None
    syncing: SyncReply | None = None

    def metadata(self, protocol: str | None) -> bytes:
        return next((metadata for name, metadata in self.protocols if name == protocol), b"")


@dataclass(slots=True)
class Group:
    """
    :raises Refusal: from every method, with the protocol's error code, when the caller is not what it says.
    """

    id: str
    limits: Limits
    new_id: Callable[[str], str]
    state: State = State.EMPTY
    generation: int = 0
    protocol_type: str | None = None
    protocol: str | None = None
    leader: str | None = None
    members: dict[str, Member] = field(default_factory=dict)
    _instances: dict[str, str] = field(default_factory=dict)
    _promised: dict[str, int] = field(default_factory=dict)
    _deadline_ms: int = 0
    _unsynced: set[str] = field(default_factory=set)

    @property
    def vacant(self) -> bool:
        """Nobody is here or on the way."""
        return self.state is State.EMPTY and not self.members and not self._promised

    def subscribes(self, topic: str) -> bool:
        """Whether a consumer of the group asked for the topic.

        The metadata is the client's business; a name that is somewhere in it errs on the side of keeping
        offsets.
        """
        return any(topic.encode() in metadata for member in self.members.values() for _, metadata in member.protocols)

    # Joining.

    def join(self, request: JoinRequest, reply: JoinReply, now_ms: int) -> None:
        self._check_protocols(request)
        known = self._instances.get(request.instance_id) if request.instance_id is not None else None
        if request.member_id == "" and known is not None:
            self._replace_static(known, request, reply, now_ms)
        elif request.member_id == "":
            self._join_unknown(request, reply, now_ms)
        elif request.member_id in self._promised:
            del self._promised[request.member_id]
            self._add(request.member_id, request, reply, now_ms)
        else:
            self._check_member(request.member_id, request.instance_id)
            self._join_again(self.members[request.member_id], request, reply, now_ms)

    def _check_protocols(self, request: JoinRequest) -> None:
        names = {name for name, _ in request.protocols}
        others = [member for member in self.members.values() if member.id != request.member_id]
        common = all(names & {name for name, _ in member.protocols} for member in others)
        same_type = not others or request.protocol_type == self.protocol_type
        if not request.protocol_type or not names or not same_type or not common:
            raise Refusal(
                ErrorCode.inconsistent_group_protocol,
                f"Group {self.id!r} has no protocol in common with the member that joins.",
            )

    def _check_member(self, member_id: str, instance_id: str | None) -> Member:
        if instance_id is not None and self._instances.get(instance_id, member_id) != member_id:
            raise Refusal(ErrorCode.fenced_instance_id, f"Another member has taken the instance id {instance_id!r}.")
        member = self.members.get(member_id)
        if member is None:
            raise Refusal(ErrorCode.unknown_member_id, f"Group {self.id!r} has no member {member_id!r}.")
        return member

    def _join_unknown(self, request: JoinRequest, reply: JoinReply, now_ms: int) -> None:
        if len(self.members) + len(self._promised) >= self.limits.group_members:
            raise Refusal(
                ErrorCode.group_max_size_reached,
                f"Group {self.id!r} has {self.limits.group_members} members.",
            )
        member_id = self.new_id(request.instance_id or request.client_id)
        if request.needs_known_id and request.instance_id is None:
            # A client whose first answer is lost would else leave a member behind that nobody plays.
            self._promised[member_id] = now_ms + request.session_timeout_ms
            reply(Joined(ErrorCode.member_id_required, member_id))
            return
        self._add(member_id, request, reply, now_ms)

    def _add(self, member_id: str, request: JoinRequest, reply: JoinReply, now_ms: int) -> None:
        member = Member(
            member_id,
            request.instance_id,
            request.client_id,
            request.client_host,
            request.session_timeout_ms,
            request.rebalance_timeout_ms,
            request.protocols,
            now_ms + request.session_timeout_ms,
        )
        self.members[member_id] = member
        if request.instance_id is not None:
            self._instances[request.instance_id] = member_id
        self.protocol_type = request.protocol_type
        if self.leader is None:
            self.leader = member_id
        member.joining = reply
        self._prepare(now_ms)

    def _join_again(self, member: Member, request: JoinRequest, reply: JoinReply, now_ms: int) -> None:
        changed = member.protocols != request.protocols
        self._refresh(member, now_ms)
        if self.state is State.COMPLETING and not changed:
            reply(self._joined(member))  # its answer was lost
        elif self.state is State.STABLE and not changed and member.id != self.leader:
            reply(self._joined(member))
        else:
            self._update(member, request, reply)
            self._prepare(now_ms)

    @staticmethod
    def _update(member: Member, request: JoinRequest, reply: JoinReply) -> None:
        member.protocols = request.protocols
        member.session_timeout_ms = request.session_timeout_ms
        member.rebalance_timeout_ms = request.rebalance_timeout_ms
        if member.joining is not None:
            # The same member on a new connection; the old one must not wait for ever.
            member.joining(Joined(ErrorCode.unknown_member_id, member.id))
        member.joining = reply

    def _replace_static(self, old_id: str, request: JoinRequest, reply: JoinReply, now_ms: int) -> None:
        """A static member came back: it takes its place and, if the group keeps its protocol, its assignment."""
        member = self.members.pop(old_id)
        if member.joining is not None:
            member.joining(Joined(ErrorCode.fenced_instance_id, old_id))
        if member.syncing is not None:
            member.syncing(Synced(ErrorCode.fenced_instance_id))
        member.joining = member.syncing = None
        assert request.instance_id is not None
        was_leader = self.leader == old_id
        member.id = self.new_id(request.instance_id)
        self.members[member.id] = member
        self._instances[request.instance_id] = member.id
        if was_leader:
            self.leader = member.id
        self._refresh(member, now_ms)
        member.protocols = request.protocols
        if self.state is State.STABLE and self._vote() == self.protocol:
            reply(self._joined_static(member, old_id, was_leader, request.can_skip_assignment))
            return
        self._update(member, request, reply)
        self._prepare(now_ms)

    def _joined_static(self, member: Member, old_id: str, was_leader: bool, can_skip: bool) -> Joined:
        # A client that cannot skip the assignment must not think that it leads, or it would assign anew.
        leader = old_id if was_leader and not can_skip else self.leader or ""
        return Joined(
            ErrorCode.none,
            member.id,
            self.generation,
            self.protocol_type,
            self.protocol,
            leader,
            was_leader and can_skip,
            self._all_metadata() if was_leader and can_skip else (),
        )

    # Rebalancing.

    def _prepare(self, now_ms: int) -> None:
        """Ask all members to join (again), unless that is under way; complete when all have."""
        if self.state is not State.PREPARING:
            if self.state is State.COMPLETING:
                self._answer_syncs(ErrorCode.rebalance_in_progress)
            first = self.state is State.EMPTY
            self.state = State.PREPARING
            longest = max((member.rebalance_timeout_ms for member in self.members.values()), default=0)
            delay = self.limits.first_rebalance_delay_ms
            self._deadline_ms = now_ms + (delay if first and delay else longest)
            self._unsynced.clear()
            if first and delay:
                return
        self._complete_if_all_joined(now_ms)

    def _complete_if_all_joined(self, now_ms: int) -> None:
        if self.state is not State.PREPARING or self._promised:
            return
        if all(member.joining is not None for member in self.members.values()):
            self._complete(now_ms)

    def _complete(self, now_ms: int) -> None:
        for member in tuple(self.members.values()):
            if member.joining is None and member.instance_id is None:
                self._remove(member)
        self.generation += 1
        if not any(member.joining is not None for member in self.members.values()):
            self._become_empty_or_wait(now_ms)
            return
        if self.leader not in self.members or self.members[self.leader].joining is None:
            self.leader = next(member.id for member in self.members.values() if member.joining is not None)
        self.protocol = self._vote()
        self.state = State.COMPLETING
        self._unsynced = set(self.members)
        self._deadline_ms = now_ms + max(member.rebalance_timeout_ms for member in self.members.values())
        for member in self.members.values():
            reply, member.joining = member.joining, None
            self._refresh(member, now_ms)
            if reply is not None:
                reply(self._joined(member))

    def _become_empty_or_wait(self, now_ms: int) -> None:
        if self.members:
            # Only static members that have not come back: their sessions decide.
            self._deadline_ms = now_ms + max(member.rebalance_timeout_ms for member in self.members.values())
            return
        self.state = State.EMPTY
        self.protocol = self.leader = None

    def _vote(self) -> str:
        """The protocol most members like best, among those that all know; the name decides a tie."""
        known = [{name for name, _ in member.protocols} for member in self.members.values()]
        common = set.intersection(*known)
        assert common, "joining checks that there is a common protocol"
        votes = Counter(
            next(name for name, _ in member.protocols if name in common) for member in self.members.values()
        )
        return min(votes, key=lambda name: (-votes[name], name))

    def _joined(self, member: Member) -> Joined:
        leads = member.id == self.leader
        return Joined(
            ErrorCode.none,
            member.id,
            self.generation,
            self.protocol_type,
            self.protocol,
            self.leader or "",
            members=self._all_metadata() if leads else (),
        )

    def _all_metadata(self) -> tuple[tuple[str, str | None, bytes], ...]:
        return tuple(
            (member.id, member.instance_id, member.metadata(self.protocol)) for member in self.members.values()
        )

    # Syncing and staying.

    def sync(
        self,
        member_id: str,
        instance_id: str | None,
        generation: int,
        protocol: tuple[str | None, str | None],
        assignments: dict[str, bytes],
        reply: SyncReply,
        now_ms: int,
    ) -> None:
        member = self.check(member_id, instance_id, generation)
        for given, own in zip(protocol, (self.protocol_type, self.protocol), strict=True):
            if given is not None and given != own:
                raise Refusal(ErrorCode.inconsistent_group_protocol, f"The group's protocol is {own!r}.")
        self._refresh(member, now_ms)
        if self.state is State.PREPARING:
            raise Refusal(ErrorCode.rebalance_in_progress)
        if self.state is State.STABLE:
            reply(self._synced(member))
            return
        self._unsynced.discard(member_id)
        if member.syncing is not None:
            member.syncing(Synced(ErrorCode.rebalance_in_progress))
        member.syncing = reply
        if member_id == self.leader:
            for other in self.members.values():
                other.assignment = assignments.get(other.id, b"")
            self.state = State.STABLE
            self._answer_syncs(ErrorCode.none)

    def _synced(self, member: Member) -> Synced:
        return Synced(ErrorCode.none, self.protocol_type, self.protocol, member.assignment)

    def _answer_syncs(self, error: ErrorCode) -> None:
        for member in self.members.values():
            reply, member.syncing = member.syncing, None
            if reply is not None:
                reply(self._synced(member) if error is ErrorCode.none else Synced(error))

    def heartbeat(self, member_id: str, instance_id: str | None, generation: int, now_ms: int) -> None:
        member = self.check(member_id, instance_id, generation)
        self._refresh(member, now_ms)
        if self.state is State.PREPARING:
            raise Refusal(ErrorCode.rebalance_in_progress)

    def check(self, member_id: str, instance_id: str | None, generation: int) -> Member:
        """A member of this generation."""
        member = self._check_member(member_id, instance_id)
        if generation != self.generation:
            raise Refusal(
                ErrorCode.illegal_generation,
                f"The group is at generation {self.generation}, not {generation}.",
            )
        return member

    def check_commit(
        self, member_id: str, instance_id: str | None, generation: int, now_ms: int, *, transactional: bool = False
    ) -> None:
        """May this client commit offsets? Without a generation it may while the group is empty.

        Within a transaction it may then too (older producers do not say for which member they commit), and while a
        rebalance completes: the producer's epoch fences it.
        """
        if generation < 0 and self.state is State.EMPTY:
            return
        if transactional and generation < 0 and not member_id and instance_id is None:
            return
        member = self.check(member_id, instance_id, generation)
        self._refresh(member, now_ms)
        if self.state is State.COMPLETING and not transactional:
            raise Refusal(ErrorCode.rebalance_in_progress)

    @staticmethod
    def _refresh(member: Member, now_ms: int) -> None:
        member.expires_ms = now_ms + member.session_timeout_ms

    # Leaving.

    def leave(self, member_id: str, instance_id: str | None, now_ms: int) -> None:
        if member_id in self._promised:
            del self._promised[member_id]
            self._complete_if_all_joined(now_ms)
            return
        if instance_id is not None and member_id == "":
            # An administrator names the static member by its instance alone.
            member_id = self._instances.get(instance_id, "")
        member = self._check_member(member_id, instance_id)
        self._remove(member)
        self._after_removal(now_ms)

    def _remove(self, member: Member) -> None:
        del self.members[member.id]
        self._unsynced.discard(member.id)
        if member.instance_id is not None:
            self._instances.pop(member.instance_id, None)
        if member.joining is not None:
            member.joining(Joined(ErrorCode.unknown_member_id, member.id))
        if member.syncing is not None:
            member.syncing(Synced(ErrorCode.unknown_member_id))
        if self.leader == member.id:
            self.leader = next(iter(self.members), None)

    def _after_removal(self, now_ms: int) -> None:
        if self.state in (State.STABLE, State.COMPLETING):
            self._prepare(now_ms)
        elif self.state is State.PREPARING:
            self._complete_if_all_joined(now_ms)

    def tick(self, now_ms: int) -> None:
        """Remove who has fallen silent; end a rebalance whose time is over."""
        if not self.members and not self._promised:
            return
        for member_id in [known for known, deadline in self._promised.items() if deadline <= now_ms]:
            del self._promised[member_id]
        silent = [
            member
            for member in self.members.values()
            # Who waits for an answer of ours cannot be late.
            if member.expires_ms <= now_ms and member.joining is None and member.syncing is None
        ]
        for member in silent:
            self._remove(member)
        if silent:
            self._after_removal(now_ms)
        self._complete_if_all_joined(now_ms)
        if self.state is State.PREPARING and self._deadline_ms <= now_ms:
            self._promised.clear()
            self._complete(now_ms)
        elif self.state is State.COMPLETING and self._deadline_ms <= now_ms:
            self._drop_unsynced(now_ms)

    def _drop_unsynced(self, now_ms: int) -> None:
        """They joined and then never asked for their assignment; without the leader's the others wait."""
        for member_id in tuple(self._unsynced):
            self._remove(self.members[member_id])
        self._prepare(now_ms)
