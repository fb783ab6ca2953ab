"""Two instances that somebody attacks, and the request that must go well afterwards."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from core.member import Role
from core.work import WorkRequest
from tests.deploy.instances import (
    WAIT_S,
    Running,
    decode_request,
    events,
    instance,
    prefill_request,
    subscribed,
    work,
)
from tests.worker_host.fake_engine import expected_tokens


@dataclass(slots=True)
class Pair:
    """What is attacked."""

    prefill: Running
    decode: Running

    async def serve(self, request: WorkRequest) -> list[int]:
        """The tokens of one answer, over both."""
        async with subscribed(self.decode) as router:
            await self.decode.decode.Decode(decode_request(request, self.prefill))
            await events(self.prefill.prefill.Prefill(prefill_request(request)))
            heard = router.heard(request.handoff_id)
            await router.until(lambda: heard.is_over)
        return heard.token_ids

    async def assert_unharmed(self, handoff_id: str = "afterwards/0") -> None:
        """Another request gets its tokens, and all blocks of both are back."""
        request = work((5, 6, 7, 8, 9), handoff_id=handoff_id)
        assert await self.serve(request) == expected_tokens(request.prompt_token_ids, 6)
        await self.prefill.all_returned()
        await self.decode.all_returned()


@asynccontextmanager
async def attacked() -> AsyncIterator[Pair]:
    """A prefill and a decode, unharmed when the block has ended."""
    async with instance(Role.PREFILL) as prefill, instance(Role.DECODE) as decode:
        pair = Pair(prefill, decode)
        yield pair
        await pair.assert_unharmed()


async def status_of(
    call: "grpc.aio.UnaryUnaryCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any]",
) -> str:
    """How a call ended, by its status's name."""
    async with asyncio.timeout(WAIT_S):
        if isinstance(call, grpc.aio.UnaryStreamCall):
            with suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
        return (await call.code()).name


@dataclass(slots=True)
class Decoy:
    """A port that nobody has a reason to dial."""

    address: str
    _listening: socket.socket = field(repr=False)

    def assert_never_dialled(self) -> None:
        """Nobody is in the queue of those who want in: the kernel lets them connect by itself."""
        try:
            client, _ = self._listening.accept()
        except BlockingIOError:
            return
        client.close()
        raise AssertionError("somebody dialled an address that no registry names")


@contextmanager
def decoy() -> Iterator[Decoy]:
    """On loopback, never dialled when the block has ended."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        host, port = listening.getsockname()
        found = Decoy(f"{host}:{port}", listening)
        yield found
        found.assert_never_dialled()
