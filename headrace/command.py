"""The `headrace` command."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from headrace.streams.errors import CannotGoOn, HeadraceError
from headrace.streams.memory import DEFAULT
from headrace.supervisor import FINAL

app = typer.Typer(
    name="headrace",
    help="Event-driven machine learning: publish events to topics, subscribe to prediction streams.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
say = Console(stderr=True, highlight=False, soft_wrap=True)

Program = Annotated[str, typer.Argument(metavar="PROGRAM", help="the Python file that declares the application")]
Broker = Annotated[
    str | None,
    typer.Option(envvar="HEADRACE_BROKER", help="kafka://host:port; left out, the local stack's", metavar="ADDRESS"),
]


@app.command()
def run(
    program: Program,
    data: Annotated[Path | None, typer.Option(help="its folder; left out, .headrace/<application>")] = None,
    broker: Annotated[
        str | None,
        typer.Option(envvar="HEADRACE_BROKER", help="use this broker instead of a local one", metavar="ADDRESS"),
    ] = None,
    broker_port: Annotated[int | None, typer.Option(help="left out, 9092 or a free one", min=1, max=65535)] = None,
    gateway_port: Annotated[int | None, typer.Option(help="left out, 8080 or a free one", min=1, max=65535)] = None,
    host: Annotated[str, typer.Option(help="where the gateway listens; elsewhere it wants a token")] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(envvar="HEADRACE_TOKEN", help="the gateway's token (better by HEADRACE_TOKEN)")
    ] = None,
    replication: Annotated[
        int | None,
        typer.Option(help="copies of each topic; left out, HEADRACE_REPLICATION's, or the broker's default", min=1),
    ] = None,
) -> None:
    """Run a program here: broker, worker and gateway, until Ctrl-C."""
    from headrace.stack import Stack

    stack = Stack(
        program,
        data=data,
        broker=broker,
        broker_port=broker_port,
        gateway_port=gateway_port,
        host=host,
        token=token,
        replication=replication,
        tell=lambda sentence: say.print(sentence, markup=False),
    )

    async def main() -> None:
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        for sign in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sign, stopped.set)
        stopping = asyncio.create_task(stopped.wait())
        starting = asyncio.create_task(stack.__aenter__())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                _greet(stack)
                failing = asyncio.create_task(stack.wait())
                await asyncio.wait([failing, stopping], return_when=asyncio.FIRST_COMPLETED)
                if failing.done():
                    failing.result()
                failing.cancel()
            say.print("stopping gateway and worker" if broker else "stopping gateway, worker and broker")
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        finally:
            stopping.cancel()
            await stack.stop()
        say.print("stopped; the next run goes on from here")

    asyncio.run(main())


def _greet(stack: Any) -> None:
    topics = stack.app.topics()
    event = next((t.name for t in topics if t.kind == "event"), "TOPIC")
    predictions = next((t.name for t in topics if t.kind == "predictions"), event)
    say.print(
        f"[bold]{stack.app.name} runs[/bold]\n"
        f"  page and gateway  {stack.gateway}\n"
        f"  broker            {stack.broker}\n"
        f"  data              {stack.data}\n"
        f"from another terminal in this folder:\n"
        f"  headrace publish {event} lines.ndjson\n"
        f"  headrace subscribe {predictions}\n"
        f"  headrace status\n"
        f"Ctrl-C stops it; what it has learnt stays."
    )


@app.command()
def publish(
    topic: Annotated[str, typer.Argument()],
    file: Annotated[str, typer.Argument(help="NDJSON, an event a line; - for standard input")],
    broker: Broker = None,
    program: Annotated[
        str | None, typer.Option(help="checks the events by its contracts; left out, the running stack's")
    ] = None,
    key: Annotated[str | None, typer.Option(help="the key field, where no program tells it", metavar="FIELD")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first bad line")] = False,
) -> None:
    """Publish the lines of a file to a topic. Bad lines are told by number; the others go on."""
    from headrace.lines import publish_lines

    if not publish_lines(topic, file, broker=broker, program=program, key=key, strict=strict, say=say):
        raise typer.Exit(1)


@app.command()
def subscribe(
    topic: Annotated[str, typer.Argument()],
    since: Annotated[
        str, typer.Option("--from", help="earliest, latest, or a time of publication (2010-03-01T12:00:00Z)")
    ] = "latest",
    most: Annotated[int | None, typer.Option("--max", help="end after this many", min=1)] = None,
    timeout: Annotated[float | None, typer.Option(help="end after this many seconds of silence", min=0)] = None,
    broker: Broker = None,
) -> None:
    """Print the records of a topic as they come: a table on a terminal, NDJSON in a pipe."""
    from headrace.lines import print_topic

    print_topic(topic, since, most=most, timeout=timeout, broker=broker, say=say)


@app.command()
def topics(broker: Broker = None) -> None:
    """List the topics of the log."""
    from headrace.reports import print_topics

    print_topics(broker)


@app.command()
def status(broker: Broker = None) -> None:
    """Show processes, topics with their rates, processors with their lag, workers and their tasks."""
    from headrace.reports import print_status

    print_status(broker)


@app.command()
def worker(
    program: Program,
    broker: Annotated[str, typer.Option(envvar="HEADRACE_BROKER", help="kafka://host:port", metavar="ADDRESS")],
    data: Annotated[Path | None, typer.Option(help="its folder; left out, .headrace/<application>")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="of Prometheus metrics; left out, 9464 or a free one", min=1, max=65535)
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="where metrics are served, to everyone who reaches it: they want no token")
    ] = "127.0.0.1",
    state_memory: Annotated[
        str,
        typer.Option(
            envvar="HEADRACE_STATE_MEMORY",
            help="of hot state, shared by its tasks (512MB, 2GB); what is beyond is read from the disk when it comes",
            metavar="SIZE",
        ),
    ] = DEFAULT,
) -> None:
    """Run a worker of a program against a broker. Started several times, workers share the tasks."""
    from headrace.program import load
    from headrace.running import BROKER, home
    from headrace.stack import choose_port
    from headrace.streams.address import parse_address
    from headrace.streams.errors import CannotGoOn
    from headrace.supervisor import FINAL
    from headrace.worker import METRICS_PORT
    from headrace.worker import run as run_worker

    address = parse_address(broker)
    os.environ[BROKER] = str(address)  # what the program's agents are made for
    if metrics_port is not None:
        choose_port(metrics_host, metrics_port, metrics_port, "--metrics-port")  # says what is wrong with it
    folder = data or home() / load(program).name
    try:
        port, other = metrics_port or METRICS_PORT, metrics_port is None
        run_worker(
            program,
            str(address),
            folder,
            metrics_port=port,
            metrics_host=metrics_host,
            other_port=other,
            state_memory=state_memory,
        )
    except CannotGoOn as error:
        say.print(f"headrace: {error}", markup=False)
        raise typer.Exit(FINAL) from error


@app.command()
def gateway(
    program: Program,
    broker: Annotated[str, typer.Option(envvar="HEADRACE_BROKER", help="kafka://host:port", metavar="ADDRESS")],
    host: Annotated[str, typer.Option(help="where it listens; beyond loopback it wants a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    token: Annotated[
        str | None, typer.Option(envvar="HEADRACE_TOKEN", help="its token (better by HEADRACE_TOKEN)")
    ] = None,
) -> None:
    """Run the gateway of a program, with its live page, against a broker."""
    from headrace.gateway import run as run_gateway
    from headrace.program import load
    from headrace.serving.access import check_listening
    from headrace.stack import choose_port
    from headrace.streams.address import parse_address

    address = parse_address(broker)
    check_listening(host, token)
    choose_port(host, port, port, "--port")  # says what is wrong with it; the server would only leave
    load(program)
    say.print(f"the gateway of {program} listens on {host}:{port}; its broker is {address}", markup=False)
    run_gateway(program, address, host=host, port=port, token=token)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def faust(
    context: typer.Context,
    program: Program,
    broker: Broker = None,
) -> None:
    """Faust's own command line on a program's `app.faust`: its agents, a message to one, commands of one's own."""
    from headrace.program import load
    from headrace.running import BROKER, find_broker
    from headrace.streams.address import SETTINGS

    address = find_broker(broker)
    if address.own:
        os.environ.update(dict.fromkeys(SETTINGS, ""))  # they are for another broker
    os.environ[BROKER] = str(address)
    load(program).faust.command_line(context.args)


@app.command()
def verify(
    program: Program,
    broker: Broker = None,
    data: Annotated[
        Path | None, typer.Option(help="of a stack that is down; left out, .headrace/<application>")
    ] = None,
) -> None:
    """Recompute features, outcomes, versions and predictions from their sources, and compare."""
    from headrace.verify import print_verified

    print_verified(program, broker, data)


@app.command()
def profile(
    program: Program,
    events: Annotated[int, typer.Option(help="rows that each processor takes, at most", min=1_000)] = 200_000,
    broker: Broker = None,
    data: Annotated[
        Path | None, typer.Option(help="of a stack that is down; left out, .headrace/<application>")
    ] = None,
) -> None:
    """Tell where the processor's time goes: run the program over the events on its log, and write nothing there."""
    from headrace.profiling import print_profile

    print_profile(program, broker, data, events, lambda line: say.print(line, markup=False))


@app.command("export-state")
def export_state(
    program: Program,
    of: Annotated[str | None, typer.Option("--set", help="of one feature set alone", metavar="NAME")] = None,
    out: Annotated[Path | None, typer.Option(help="left out, standard output", metavar="FILE")] = None,
    broker: Broker = None,
    data: Annotated[
        Path | None, typer.Option(help="of a stack that is down; left out, .headrace/<application>")
    ] = None,
) -> None:
    """Write the state as of the last commits as NDJSON: features by entity, open windows, what a learner has learnt."""
    from headrace.export import print_state

    print_state(program, broker, data, of, out, lambda line: say.print(line, markup=False))


@app.command()
def reset(
    program: Program,
    broker: Annotated[
        str | None,
        typer.Option(envvar="HEADRACE_BROKER", help="left out, that of the stack that is down", metavar="ADDRESS"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="its folder; left out, .headrace/<application>")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Begin anew: delete all that came of the events, so that the next start computes it again. It asks first."""
    from headrace.reset import print_reset

    print_reset(program, broker, data, yes, lambda line: say.print(line, markup=False))


@app.command()
def data(name: Annotated[str, typer.Argument(help="online-retail")]) -> None:
    """Fetch a real data set; prints where it lies."""
    from headrace.data import DATA_SETS, fetch

    print(fetch(name))
    say.print(DATA_SETS[name].attribution)


def main() -> None:
    """Exit codes: 0; 1 with a sentence on standard error; 2 for wrong usage; 78, with its sentence too, where a worker
    would fail in the same way again; 130 after Ctrl-C."""
    # What the Kafka client has to say about connections that come and go, the errors say better.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        app()
    except HeadraceError as error:
        say.print(f"headrace: {error}", markup=False)
        sys.exit(FINAL if isinstance(error, CannotGoOn) else 1)


if __name__ == "__main__":
    main()
