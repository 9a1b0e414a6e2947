"""A worker that does nothing, as a process of its own: the life cycle of a stack without the engine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from headrace.streams.parent import watch_parent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--broker")
    parser.add_argument("--data")
    parser.add_argument("--parent-fd", type=int)
    parser.add_argument("--metrics-port", type=int)
    chosen = parser.parse_args()
    watch_parent(chosen.parent_fd)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    fails = os.environ.get("STUB_FAILS")
    if fails and fails != "never ready":
        sys.exit("the state cannot be read")
    if not fails:
        print("worker ready", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
