"""What tests of histories share."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest

REAL_CLIENTS = [
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""A client of aiokafka that gives up in the middle of connecting leaves its socket to the garbage collector."""


@pytest.fixture
def quiet() -> Iterator[None]:
    """Connections that are refused while a broker is dead are no news here; garbage stays in its test."""
    loggers = [logging.getLogger(name) for name in ("aiokafka", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    yield
    gc.collect()
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)
