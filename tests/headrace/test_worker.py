"""A worker within this process: what ends it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from headrace.streams.address import Address

from headrace.presence import Cleaner
from headrace.worker import serve
from tests.headrace.bank import app


async def test_a_part_that_fails_where_nobody_foresaw_it_ends_the_worker(
    broker: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: Cleaner) -> None:
        await asyncio.sleep(0.5)
        raise LookupError("nobody foresaw it")

    monkeypatch.setattr(Cleaner, "run", fails)
    with pytest.raises(LookupError, match="nobody foresaw it"):
        async with asyncio.timeout(40):
            await serve(app, str(broker), tmp_path)
