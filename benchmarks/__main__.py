"""`make bench`, or `python -m benchmarks [--only NAME] [--repeats N] [--json FILE]`: the figures, each with its spread.

Beside these, `make bench-broker` measures the local broker, `python benchmarks/features.py` features,
`python -m benchmarks.scale` what an event costs against the number of keys and of features (`--workers`: events/s over
workers and partitions), `python -m benchmarks.latency` latency beside Kafka Streams and Flink (`--first`: the first
event after a start), and `python -m benchmarks.restart` restarts with 1 GB of state, beside Kafka Streams.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import gaps, guarantees, latency, recovery, returns, window
from benchmarks.figures import Figure, machine

MEASURES: dict[str, Callable[[int], list[Figure]]] = {
    "window": window.measure,
    "latency": latency.measure,
    "returns": returns.measure,
    "guarantees": guarantees.measure,
    "recovery": recovery.measure,
    "gaps": gaps.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MEASURES, action="append", help="measure this; may be given again")
    parser.add_argument("--repeats", type=int, default=3, help="the median of so many is told")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args(arguments)
    if chosen.repeats < 1:
        parser.error("--repeats must be at least 1")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    here = machine()
    print(f"{here}; the median of {chosen.repeats} (least to most)", flush=True)
    found = {}
    for name in chosen.only or MEASURES:
        print(f"\n{name}: {(sys.modules[MEASURES[name].__module__].__doc__ or '').splitlines()[0]}", flush=True)
        found[name] = MEASURES[name](chosen.repeats)
        for figure in found[name]:
            print(f"  {figure}", flush=True)
    if chosen.json:
        figures = {name: [figure.as_json() for figure in figures] for name, figures in found.items()}
        chosen.json.write_text(json.dumps({"machine": here, "figures": figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
