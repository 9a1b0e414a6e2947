"""Where the log is: `kafka://host:port`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headrace.streams.errors import BadAddress


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a broker."""

    host: str
    port: int

    @property
    def bootstrap(self) -> str:
        """As Kafka clients take it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"kafka://{self.bootstrap}"


def parse_address(text: str) -> Address:
    """The address in `kafka://host:port` or `host:port`.

    >>> str(parse_address("localhost:9092"))
    'kafka://localhost:9092'

    Raises BadAddress where the text is no such thing.
    """
    match = re.fullmatch(r"(?:kafka://)?(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})/?", text.strip())
    if match is None or not 0 < int(match[3]) < 65536:
        raise BadAddress(f"{text!r} is not the address of a broker: write kafka://host:port, as kafka://localhost:9092")
    return Address(match[1] or match[2], int(match[3]))
