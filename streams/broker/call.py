"""One request, as the functions that answer it see it."""

from typing import Any

from kio.schema.errors import ErrorCode
from msgspec import Struct

from .errors import Refusal
from .messages import Message
from .node import Node


class Call(Struct, frozen=True):
    node: Node
    request: Message
    version: int
    client_id: str
    client_host: str

    def topic(self, entry: Message, name: str = "name") -> str:
        """
        The name of the topic that an entry of the request is about; the newest versions give its id instead.

        :raises Refusal: UNKNOWN_TOPIC_ID.
        """
        given = getattr(entry, name, None)
        if given is not None:
            return str(given)
        found = self.node.topics.by_id(entry.topic_id) if entry.topic_id is not None else None
        if found is None:
            raise Refusal(ErrorCode.unknown_topic_id, f"There is no topic with the id {entry.topic_id}.")
        return found.name


def names(topic: Message) -> dict[str, Any]:
    """What an answer calls a topic: as the request did, by name or by id."""
    return {field: getattr(topic, field) for field in ("name", "topic", "topic_id") if hasattr(topic, field)}
