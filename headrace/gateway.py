"""The gateway of a program, as a process: `python -m headrace.gateway PROGRAM --broker HOST:PORT`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from headrace.program import load
from headrace.serving import page
from headrace.serving.gateway import Settings, create, server
from headrace.streams.address import Address, parse_address
from headrace.streams.errors import HeadraceError
from headrace.streams.parent import watch_parent

TOKEN = "HEADRACE_TOKEN"
"""The token comes by the environment: a command line can be read by everyone on the machine."""


def run(
    program: str,
    broker: Address,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    parts: Sequence[tuple[str, str]] = (),
) -> None:
    """Serve a program's topics and its live page until SIGTERM or SIGINT.

    parts: other parts of the stack and the addresses of their metrics, which are served too

    Raises ProgramError, and ServingError where it would listen beyond this machine without a good token.
    """
    app = load(program)
    chosen = Settings(
        app.name,
        broker,
        app.topics(),
        app.processors(),
        host=host,
        port=port,
        token=token,
        parts=tuple(parts),
    )
    gateway = create(chosen)
    page.mount(gateway, chosen)
    server(gateway, chosen).run()


def main() -> int:
    parser = argparse.ArgumentParser("python -m headrace.gateway", description="The gateway of a program.")
    parser.add_argument("program")
    parser.add_argument("--broker", required=True, type=parse_address)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument(
        "--part", action="append", default=[], metavar="NAME=URL", help="another part, whose metrics are served too"
    )
    parser.add_argument("--parent-fd", type=int)
    chosen = parser.parse_args()
    watch_parent(chosen.parent_fd)
    try:
        run(
            chosen.program,
            chosen.broker,
            host=chosen.host,
            port=chosen.port,
            token=os.environ.get(TOKEN) or None,
            parts=[(name, url) for name, _, url in (part.partition("=") for part in chosen.part)],
        )
    except HeadraceError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
