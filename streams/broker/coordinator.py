"""All groups of the broker and the offsets they have committed."""

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from kio.schema.errors import ErrorCode

from .errors import Refusal
from .groups import Group, JoinReply, JoinRequest, State
from .limits import Limits
from .store import Change, Store, group_prefix, offset_key, split_offset_key

_OFFSET = struct.Struct(">qiq")
Place = tuple[str, int]
"""A topic and a partition's index."""


@dataclass(frozen=True, slots=True)
class Committed:
    """One committed offset."""

    offset: int
    leader_epoch: int
    metadata: str
    committed_ms: int

    def pack(self) -> bytes:
        return _OFFSET.pack(self.offset, self.leader_epoch, self.committed_ms) + self.metadata.encode()


def unpack_committed(data: bytes) -> Committed:
    offset, epoch, committed_ms = _OFFSET.unpack_from(data)
    return Committed(offset, epoch, data[_OFFSET.size :].decode(), committed_ms)


class GroupCoordinator:
    """
    Groups live in memory, since members join again after a restart; committed offsets live in the store.
    """

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._groups: dict[str, Group] = {}
        self._vacant_since: dict[str, int] = {}
        self._offsets: dict[str, dict[Place, Committed]] = {}
        for key, value in store.scan(b"o"):
            group, topic, partition = split_offset_key(key)
            self._offsets.setdefault(group, {})[topic, partition] = unpack_committed(value)

    def names(self) -> Iterator[str]:
        return iter(sorted(self._groups.keys() | self._offsets.keys()))

    def get(self, group_id: str) -> Group | None:
        """The group, or an empty one where only its offsets are left."""
        found = self._groups.get(group_id)
        if found is None and group_id in self._offsets:
            return self._new(group_id)
        return found

    def _new(self, group_id: str) -> Group:
        return Group(group_id, self._limits, _new_member_id)

    def join(self, group_id: str, request: JoinRequest, reply: JoinReply, now_ms: int) -> None:
        """:raises Refusal: as `Group.join`, and for what is wrong with the request itself."""
        check_group_id(group_id)
        least, most = self._limits.session_timeout_min_ms, self._limits.session_timeout_max_ms
        if not least <= request.session_timeout_ms <= most:
            raise Refusal(
                ErrorCode.invalid_session_timeout,
                f"The session time-out is {request.session_timeout_ms} ms; {least} to {most} are allowed.",
            )
        group = self._groups.get(group_id)
        if group is None:
            if request.member_id != "":
                raise Refusal(ErrorCode.unknown_member_id, f"There is no group {group_id!r}.")
            if len(self._groups) >= self._limits.groups:
                raise Refusal(ErrorCode.group_max_size_reached, f"The broker has {self._limits.groups} groups.")
            group = self._new(group_id)
            group.join(request, reply, now_ms)  # only a group that someone could join is kept
            self._groups[group_id] = group
            return
        group.join(request, reply, now_ms)

    def member_of(self, group_id: str) -> Group:
        """:raises Refusal: UNKNOWN_MEMBER_ID: without the group there is no member."""
        check_group_id(group_id)
        group = self._groups.get(group_id)
        if group is None:
            raise Refusal(ErrorCode.unknown_member_id, f"There is no group {group_id!r}.")
        return group

    def check_commit(
        self,
        group_id: str,
        member_id: str,
        instance_id: str | None,
        generation: int,
        now_ms: int,
        *,
        transactional: bool = False,
    ) -> None:
        """:raises Refusal: when this client may not commit for the group, whose name may be empty for old clients."""
        group = self.get(group_id)
        if group is None:
            if generation >= 0:
                raise Refusal(ErrorCode.illegal_generation, f"There is no group {group_id!r}.")
            return
        group.check_commit(member_id, instance_id, generation, now_ms, transactional=transactional)

    def check_metadata(self, metadata: str) -> None:
        """:raises Refusal: OFFSET_METADATA_TOO_LARGE."""
        if len(metadata.encode()) > self._limits.offset_metadata_bytes:
            raise Refusal(
                ErrorCode.offset_metadata_too_large,
                f"The metadata of a commit has at most {self._limits.offset_metadata_bytes} bytes.",
            )

    def committed(self, group_id: str) -> dict[Place, Committed]:
        return self._offsets.get(group_id, {})

    def stage(self, group_id: str, offsets: dict[Place, Committed], change: Change) -> None:
        for (topic, partition), committed in offsets.items():
            change.put(offset_key(group_id, topic, partition), committed.pack())

    def apply(self, group_id: str, offsets: dict[Place, Committed]) -> None:
        if offsets:
            self._offsets.setdefault(group_id, {}).update(offsets)

    def commit(self, group_id: str, offsets: dict[Place, Committed]) -> None:
        change = Change()
        self.stage(group_id, offsets, change)
        self._store.commit(change)
        self.apply(group_id, offsets)

    def forget_offsets(self, group_id: str, places: list[Place]) -> None:
        change = Change()
        for topic, partition in places:
            change.delete(offset_key(group_id, topic, partition))
        self._store.commit(change)
        held = self._offsets.get(group_id, {})
        for place in places:
            held.pop(place, None)

    def forget_topic(self, topic: str) -> None:
        """From memory; the store forgets with the topic."""
        for held in self._offsets.values():
            for place in [place for place in held if place[0] == topic]:
                del held[place]

    def delete(self, group_id: str) -> None:
        """:raises Refusal: GROUP_ID_NOT_FOUND or NON_EMPTY_GROUP."""
        group = self.get(group_id)
        if group is None:
            raise Refusal(ErrorCode.group_id_not_found, f"There is no group {group_id!r}.")
        if group.state is not State.EMPTY:
            raise Refusal(ErrorCode.non_empty_group, f"Group {group_id!r} has members.")
        change = Change()
        change.delete_prefix(group_prefix(group_id))
        self._store.commit(change)
        self._groups.pop(group_id, None)
        self._vacant_since.pop(group_id, None)
        self._offsets.pop(group_id, None)

    def tick(self, now_ms: int) -> None:
        for group_id, group in tuple(self._groups.items()):
            group.tick(now_ms)
            if not group.vacant or group_id in self._offsets:
                self._vacant_since.pop(group_id, None)
            elif now_ms - self._vacant_since.setdefault(group_id, now_ms) >= self._limits.vacant_group_ms:
                del self._groups[group_id], self._vacant_since[group_id]


def check_group_id(group_id: str) -> None:
    """:raises Refusal: INVALID_GROUP_ID."""
    if not group_id or len(group_id.encode()) > 65_535:
        raise Refusal(ErrorCode.invalid_group_id, "A group has a name.")


def _new_member_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4()}"
