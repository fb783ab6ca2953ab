"""Two ends of a pair group meet, and nobody else; the memory of payloads is lent once at a time."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from core.errors import PeerLost
from kv_transfer.carriers.contract import CarrierUnusable
from kv_transfer.carriers.pair_group import GLOO, PairGroup, PairPlace
from kv_transfer.carriers.pair_line import MAX_KEYS, PairLine
from kv_transfer.carriers.pair_staging import Staging

HOST = "127.0.0.1"
PATIENCE_S = 30.0
"""Of a test that is stuck; nothing is measured by it."""
SHORT_S = 0.2
"""For what has to time out."""


@pytest.fixture(autouse=True)
async def patience() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop and the groups' threads go on; the test's patience bounds it."""
    while not is_so():
        await asyncio.to_thread(int)


async def test_a_stranger_is_not_let_in() -> None:
    source = PairGroup(PairPlace("a" * 32, 0, HOST), GLOO, PATIENCE_S)
    stranger = PairGroup(PairPlace("b" * 32, 1, HOST), GLOO, PATIENCE_S)
    async with asyncio.TaskGroup() as group:
        reaching = stranger.reach(source.listen())
        for end in (source.accept(), reaching):
            group.create_task(refused(end))
    await until(lambda: source.is_gone and stranger.is_gone)


async def refused(opening: object) -> None:
    with pytest.raises(CarrierUnusable):
        await opening  # type: ignore[misc]


@pytest.mark.parametrize(
    "message",
    [
        b"\xff\xff\x00\x00",
        b"\x00\x01\xff\xff",
        b"".join(b"\x00\x02\x00\x00%02d" % index for index in range(MAX_KEYS + 1)),
    ],
    ids=["a long key", "a long value", "many keys"],
)
async def test_what_a_stranger_says_is_bounded(message: bytes) -> None:
    lost = asyncio.Event()
    near, far = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, line = await loop.create_connection(lambda: PairLine(lost.set, SHORT_S), sock=near)
    with far:
        await loop.sock_sendall(nonblocking(far), message)
        await lost.wait()
    with pytest.raises(PeerLost):
        await asyncio.to_thread(line.store.get, "never said")


def nonblocking(end: socket.socket) -> socket.socket:
    end.setblocking(False)
    return end


def test_staging_lends_nothing_twice() -> None:
    staging = Staging()
    first, second = (staging.lend(staging.take(), 100) for _ in range(2))
    first[:], second[:] = b"a" * 100, b"b" * 100
    assert bytes(first) == b"a" * 100
    part = second[10:20]
    del second
    third = staging.lend(staging.take(), 100)
    third[:] = b"c" * 100
    assert bytes(part) == b"b" * 10
    del part
    assert bytes(staging.lend(staging.take(), 100)) == b"b" * 100, "a dropped one is reused"
