"""`python -m headrace.streams.broker --data DIR --port P`: the local broker as a process."""

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict

from headrace.streams.metrics import describe_process, serve
from headrace.streams.parent import watch_parent

from .errors import BrokerError
from .server import Broker


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m headrace.streams.broker",
        description="The Kafka protocol over RocksDB, for one machine.",
    )
    parser.add_argument("--data", required=True, help="the folder that holds everything; made if missing")
    parser.add_argument("--port", type=int, required=True, help="0 takes any free port")
    parser.add_argument("--host", default="127.0.0.1", help="elsewhere than on loopback it wants TLS and users")
    parser.add_argument("--advertise", default="", metavar="HOST", help="how clients reach it, if not by --host")
    parser.add_argument("--tls-cert", metavar="FILE", help="its certificate, with those of its authorities (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="the key of the certificate (PEM)")
    parser.add_argument("--users", metavar="FILE", help="who may use it; see python -m headrace.streams.broker.users")
    parser.add_argument("--fsync", action="store_true", help="what is acknowledged survives power cuts too")
    parser.add_argument(
        "--accept-loss", action="store_true", help="read a damaged write-ahead log up to the damage; the rest is lost"
    )
    parser.add_argument("--auto-create", action="store_true", help="create topics that clients ask for")
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics on this loopback port")
    parser.add_argument("--parent-fd", type=int, help="end when the other end of this pipe closes")
    parsed = parser.parse_args(arguments)
    if bool(parsed.tls_cert) != bool(parsed.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    return parsed


async def _serve(arguments: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for kind in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(kind, stopped.set)
    broker = Broker(
        arguments.data,
        arguments.host,
        arguments.port,
        fsync=arguments.fsync,
        accept_loss=arguments.accept_loss,
        advertise=arguments.advertise,
        tls=(arguments.tls_cert, arguments.tls_key) if arguments.tls_cert else None,
        users=arguments.users,
        auto_create=arguments.auto_create,
    )
    async with broker:
        if arguments.metrics_port is not None:
            describe_process(broker.metrics.registry, "broker", asdict(broker.limits))
            serve(broker.metrics.registry, arguments.metrics_port)
        # What has been loaded stays for ever: looked over by the collector, it would hold up requests for 50 ms.
        gc.freeze()
        print(f"ready: the local broker serves {arguments.data} at {broker.address}", flush=True)
        await stopped.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return None
    return uvloop.new_event_loop


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parsed = _arguments(arguments)
    watch_parent(parsed.parent_fd)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(parsed))
    except BrokerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
