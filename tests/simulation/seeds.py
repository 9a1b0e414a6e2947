"""Which seeds a run takes, and which pipeline each of them is for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Literal

from headrace.streams.memory import Memory

Pipeline = Literal["totals", "returns", "windows"]

DEALT: tuple[Pipeline, ...] = (
    "totals", "returns", "windows", "totals", "returns", "windows", "totals", "returns", "windows", "totals",
)  # fmt: skip
"""Ten seeds' pipelines: a seed names a whole run. Totals cost a fifth of the others."""

FIRST = int(os.environ.get("FIRST", "1"))
SEEDS = int(os.environ.get("SEEDS", "300"))

BLOCKS = 10
"""Tests that a pipeline's seeds are divided among, so that progress shows."""


def seeds(pipeline: Pipeline, block: int) -> Iterator[int]:
    """The seeds of one block of a pipeline."""
    mine = [s for s in range(FIRST, FIRST + SEEDS) if DEALT[s % len(DEALT)] == pipeline]
    yield from mine[block::BLOCKS]


def check(pipeline: Pipeline, block: int, run: Callable[[int], list[str]]) -> None:
    """Run each seed of a block; the first that finds anything wrong fails, with the command that replays it."""
    for seed in seeds(pipeline, block):
        try:
            wrong = run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed} broke: {_replay(seed)}") from error
        assert not wrong, f"seed {seed}: {_replay(seed)}\n" + "\n".join(wrong[:20])


def bound(seed: int) -> Memory | None:
    """The bound on hot state of a seed's world: most often none, else so small that nobody stays."""
    return None if seed % 4 else Memory(1)


def _replay(seed: int) -> str:
    return f"replay it with `make sim FIRST={seed} SEEDS=1`"
