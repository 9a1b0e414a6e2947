"""One request, as the functions that answer it see it."""

from dataclasses import dataclass

from .messages import Message
from .node import Node


@dataclass(frozen=True, slots=True)
class Call:
    node: Node
    request: Message
    version: int
    client_id: str
    client_host: str
