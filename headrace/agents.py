"""A program's own Faust agents, timers and crontabs: `app.faust`, in a process of its own beside the worker's tasks.

python -m headrace.agents PROGRAM --broker HOST:PORT

Every worker runs one, and they share the agents' partitions among them by Faust's own group. They are apart from the
tasks because a Faust app that has crashed cannot be started again in its process, and an agent that computes for long
holds its event loop: neither may touch what is exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from headrace import program
from headrace.app import App
from headrace.running import BROKER
from headrace.streams.address import Address, faust_options, parse_address
from headrace.streams.admin import ensure_topics
from headrace.streams.errors import DeclarationError, HeadraceError
from headrace.streams.parent import watch_parent
from headrace.streams.topics import Topic

with warnings.catch_warnings():
    # faust-streaming and mode-streaming use what newer Pythons and their own dependencies have deprecated.
    warnings.simplefilter("ignore")
    import faust

logger = logging.getLogger("headrace.agents")

STOP_WITHIN = 8.0
"""Seconds for agents to end what they do: less than a supervisor gives, so that they end by themselves."""

SESSION = 10.0
"""Seconds after which the group goes on without agents that died, and did not leave it. Faust's consumer says that it
lives from a thread of its own, so an agent that computes for longer keeps its place; with Faust's 60 seconds a crash
can hold up everybody's agents for a minute."""

ONE = 1
"""Events of a partition that an agent has under way. With more, Faust commits offsets past events that are not done
when they end out of order, and a crash loses them."""


class AgentApp(faust.App):
    """A `faust.App` without what would not keep its promise: tables, and agents with several events under way."""

    mundane_level = "debug"

    def agent(self, channel: Any = None, *, concurrency: int = ONE, **options: Any) -> Any:
        """As Faust's. An agent that raises is told of in a sentence, and goes on with the next event."""
        if concurrency != ONE:
            raise DeclarationError(
                f"app.faust.agent: concurrency={concurrency} would lose events in a crash, for they are committed out "
                f"of order; leave it out, and give the topic more partitions"
            )
        return super().agent(channel, concurrency=ONE, **options)

    async def _on_agent_error(self, agent: Any, error: BaseException) -> None:
        logger.error(
            "agent %s failed on an event and goes on with the next: %s: %s",
            agent.fun.__name__,
            type(error).__name__,
            error,
            exc_info=error,
        )
        await super()._on_agent_error(agent, error)

    def Table(self, name: str = "", *_: Any, **__: Any) -> NoReturn:
        raise DeclarationError(
            f"app.faust.Table({name!r}): a Faust table is written before the events are committed, so a crash counts "
            f"some of them twice. Declare the state as hr.Features, which are exactly once, and let the agent read "
            f"their topic"
        )

    def command_line(self, arguments: Sequence[str]) -> None:
        """Faust's command line, with the commands that the program adds by `@app.faust.command()`."""
        from faust.cli.faust import cli

        self.finalize()
        cli(args=list(arguments), app=self, prog_name="headrace faust PROGRAM")

    GlobalTable = SetTable = SetGlobalTable = Table


def build(name: str) -> AgentApp:
    """The Faust app of an application, for the broker in HEADRACE_BROKER."""
    address = parse_address(os.environ.get(BROKER) or "localhost:9092")
    return AgentApp(
        f"{name}.agents",
        **faust_options(address),
        store="memory://",
        datadir=str(Path(tempfile.gettempdir()) / f"headrace-{name}.agents"),
        web_enabled=False,
        autodiscover=False,
        stream_wait_empty=False,
        broker_commit_interval=1.0,
        broker_session_timeout=SESSION,
    )


async def serve(app: App, address: Address) -> None:
    """Run the agents until SIGTERM or SIGINT. Raises what made Faust crash."""
    agents, stopping = app.faust, asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    made = await ensure_topics(address, _topics(agents), exact=False)
    if made:
        logger.info("created %s, which agents read", ", ".join(made))
    starting = asyncio.create_task(agents.start())
    waiting = [asyncio.create_task(e.wait()) for e in (stopping, agents._crashed)]
    try:
        await asyncio.wait([starting, *waiting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            print(f"ready: {len(agents.agents)} agents of {app.name}", flush=True)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.is_set():
            raise agents.crash_reason
    finally:
        for one in (starting, *waiting):
            one.cancel()
        await asyncio.wait([asyncio.create_task(agents.stop())], timeout=STOP_WITHIN)


def _topics(agents: Any) -> list[Topic]:
    """The topics that agents read by name, as they are created where there is none."""
    found: dict[str, Topic] = {}
    for agent in agents.agents.values():
        channel = agent.channel
        for name in getattr(channel, "topics", None) or ():
            partitions = channel.partitions or 1
            found[name] = Topic(name, "event", partitions, None, {"retention.ms": "-1"})
    return list(found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace agents", description="Run the Faust agents of a program.")
    parser.add_argument("program")
    parser.add_argument("--broker", required=True, metavar="HOST:PORT")
    parser.add_argument("--parent-fd", type=int)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for noisy in ("aiokafka", "faust.agents.actor"):  # what an agent raised has been said, and by whom
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    for wordy in ("faust", "mode"):
        logging.getLogger(wordy).setLevel(logging.WARNING)
    watch_parent(options.parent_fd)
    os.environ[BROKER] = options.broker
    try:
        app = program.load(options.program)
        uvloop.run(serve(app, parse_address(options.broker)))
    except HeadraceError as error:
        print(f"agents stopped: {error}", file=sys.stderr, flush=True)
        return 1
    except Exception as error:
        print(f"agents stopped, for Faust crashed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # threads of a crashed Faust app would go on, and complain that their loop is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
