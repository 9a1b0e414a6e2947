"""Whatever bytes come, the broker answers or hangs up: it never hangs, dies, takes more and more memory, is surprised.

The frames are by seed: a failing one is named by the seed and the number, and comes again.
"""

import asyncio
import io
import random
import resource
import struct
from collections.abc import Iterator

import pytest
from headrace.streams.broker import Broker
from headrace.streams.broker.api import APIS
from kio.index import load_request_schema
from kio.serial import entity_writer

from tests.streams.broker.building import builder
from tests.streams.broker.clients import Clients
from tests.streams.broker.test_versions import REQUESTS, VERSIONS

SEEDS = range(4)
FRAMES = 250
ANSWERED_WITHIN = 20.0
GROWTH_KB = 200_000
"""What a frame of the largest size and its objects may take, once."""
LENGTHS = (-1, -2, 0, 1, 0x7F, 0xFF, 0x7FFF, 0x7FFFFFFF, -0x80000000)


def whole(key: int, version: int) -> bytes:
    """A request as a client sends it, without its length."""
    schema = load_request_schema(key, version)
    body = io.BytesIO()
    body.write(struct.pack(">hhih4s", key, version, 7, 4, b"fuzz"))
    if schema.__header_schema__.__flexible__:
        body.write(b"\0")
    entity_writer(schema)(body, builder(schema)(REQUESTS.get(key, {})))
    return body.getvalue()


def changed(frame: bytes, dice: random.Random) -> bytes:
    """The frame with one to four changes, each of a kind that parsers fall for."""
    data = bytearray(frame)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1) if dice.random() < 0.2 else dice.randrange(min(8, len(data)), len(data) + 1)
        match dice.randrange(7):
            case 0:
                data[at : at + 1] = bytes((dice.randrange(256),))
            case 1:
                data[at : at + 4] = struct.pack(">i", dice.choice(LENGTHS))
            case 2:
                data[at : at + 2] = struct.pack(">h", dice.randrange(-0x8000, 0x8000))
            case 3:
                data[at:at] = b"\xff\xff\xff\xff" + bytes(
                    (dice.choice((0x07, 0x0F, 0x7F, 0xFF)),)
                )  # as a varint: 2^31 and more
            case 4:
                del data[at:]
            case 5:
                data[at:at] = data[at : at + dice.randrange(64)]
            case _:
                data[at:at] = dice.randbytes(dice.randrange(64))
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def frames(seed: int) -> Iterator[bytes]:
    dice = random.Random(seed)
    for number in range(FRAMES):
        if number % 10 == 0:
            head = struct.pack(">hhih", dice.choice(list(APIS)), dice.randrange(-1, 14), number, -1)
            yield (head if dice.random() < 0.7 else b"") + dice.randbytes(dice.randrange(1, 400))
        else:
            yield changed(whole(*dice.choice(VERSIONS)), dice)


async def settled(broker: Broker, frame: bytes) -> None:
    """Send one frame, end the sending, and wait until the broker has hung up; what it answers is whole."""
    host, port = broker.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(struct.pack(">i", len(frame)) + frame)
        writer.write_eof()
        async with asyncio.timeout(ANSWERED_WITHIN):
            answer = await reader.read(-1)
        if answer:
            (length,) = struct.unpack_from(">i", answer)
            assert length == len(answer) - 4
    except ConnectionResetError:
        pass  # it hung up before all was read
    finally:
        writer.close()


def peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_frame_hangs_or_surprises_the_broker(
    local: Clients, broker: Broker, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    await local.topic("t")
    before = peak_kb()
    for number, frame in enumerate(frames(seed)):
        try:
            await settled(broker, frame)
        except Exception as error:
            raise AssertionError(f"seed {seed}, frame {number}: {frame[:200]!r}") from error
        surprised = [record.getMessage() for record in caplog.records if record.exc_info]
        assert not surprised, (seed, number, frame[:200], surprised, caplog.text[-3000:])
        caplog.clear()
    assert peak_kb() - before < GROWTH_KB
    assert (await (await local.wire()).ask(3, 5, topics=())).brokers


@pytest.mark.parametrize(
    ("key", "version"), [(3, 1), (3, 12), (2, 7), (8, 9), (11, 9), (19, 7), (24, 3), (32, 4), (44, 1), (0, 9)]
)
async def test_the_largest_frames_of_the_smallest_entries_are_over_soon(
    local: Clients, broker: Broker, key: int, version: int
) -> None:
    """Arrays that claim 2^31 entries, and as many empty ones as a frame holds."""
    before = peak_kb()
    head = struct.pack(">hhih", key, version, 7, -1)
    size = broker.limits.request_bytes - 100
    for claim in (struct.pack(">i", 0x7FFFFFFF), struct.pack(">i", size // 2), b"\x80\x80\x80\x80\x08"):
        for fill in (b"\0", b"\1", b"\2"):
            await settled(broker, head + b"\0" * (version > 8) + claim + fill * size)
    assert peak_kb() - before < GROWTH_KB
    assert (await (await local.wire()).ask(3, 5, topics=())).brokers
