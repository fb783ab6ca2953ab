"""What the registry's tests share: a member to announce, and bounded ways to wait for news."""

import asyncio
import dataclasses
import logging
import os
import select
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from core.ids import Fingerprint, InstanceId
from core.member import Member, Role
from registry.api import Registry

NEWS_TIMEOUT_S = 20.0
"""Far above any grace or re-read, so that only a missing change fails."""

Members = tuple[Member, ...]

WORKER = Member(
    instance_id=InstanceId("decode-0"),
    role=Role.DECODE,
    addresses=("127.0.0.1:7000",),
    fingerprint=Fingerprint("f00d"),
    model="smollm2-135m",
    incarnation="first",
    host_id="host-a",
    protocol_version=1,
    block_size=16,
    max_context_tokens=8192,
    num_blocks=100,
)


def make_member(instance_id: str = "decode-0", **changes: Any) -> Member:
    """WORKER under another name, and with other fields."""
    return dataclasses.replace(WORKER, instance_id=InstanceId(instance_id), **changes)


def ids(members: Members) -> list[str]:
    """What most tests compare."""
    return [str(member.instance_id) for member in members]


@asynccontextmanager
async def watching(registry: Registry) -> AsyncIterator[AsyncIterator[Members]]:
    """A watch that ends with the test."""
    watch = cast("AsyncGenerator[Members, None]", registry.watch())
    try:
        yield watch
    finally:
        await watch.aclose()


async def news(watch: AsyncIterator[Members]) -> Members:
    """What the watch says next."""
    async with asyncio.timeout(NEWS_TIMEOUT_S):
        return await anext(watch)


async def news_until(watch: AsyncIterator[Members], want: Callable[[Members], bool]) -> Members:
    """The first thing it says that is wanted."""
    async with asyncio.timeout(NEWS_TIMEOUT_S):
        async for members in watch:
            if want(members):
                return members
    raise AssertionError("the watch ended")


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Return when `text` is logged."""
    seen = asyncio.Event()
    handler = _Spy(text, seen)
    logging.getLogger("registry").addHandler(handler)
    try:
        if text in caplog.text:
            return
        async with asyncio.timeout(NEWS_TIMEOUT_S):
            await seen.wait()
    finally:
        logging.getLogger("registry").removeHandler(handler)


class _Spy(logging.Handler):
    def __init__(self, text: str, seen: asyncio.Event) -> None:
        super().__init__()
        self._text, self._seen = text, seen

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self._seen.set()


def ends(pid: int, timeout_s: float) -> bool:
    """Whether the process, not our child perhaps, has ended within `timeout_s`."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], timeout_s)[0])
    finally:
        os.close(pidfd)
