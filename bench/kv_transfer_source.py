"""The sending process of `bench kv_transfer`: does what each line of standard input asks for, and
answers with a line. Ends with its input."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from bench.kv_transfer_end import (
    CAPABILITIES,
    FENCE,
    LOOPBACK,
    SOURCE_ID,
    TAG,
    TIMEOUT_S,
    End,
    Plain,
)
from bench.kv_transfer_spec import LARGE_TOKENS, LAYOUT, SEED
from core.blocks import BlockState
from core.ids import HandoffId
from kv_transfer.book import SourceBook
from kv_transfer.carriers.pair_group import TwoRanks, connect_gloo
from kv_transfer.service import KvTransferService
from kv_transfer.shelf import Shelf
from kv_transfer.source import FirstToken
from rpc.options import Plane
from rpc.serve import bind, build
from worker_host.blocks import InstanceBlocks

Command = Callable[..., Awaitable[dict[str, Any]]]


class Source:
    """Finished prefills, and the baselines' sending ends."""

    def __init__(self) -> None:
        self._end = End(SOURCE_ID, SEED)
        self._end.store.fill()
        self._host = self._end.host("auto")
        self.book = SourceBook(
            layout=LAYOUT, blocks=self._end.blocks, clock=self._host.clock, config=self._host.config
        )
        self._plain = Plain(LARGE_TOKENS * LAYOUT.bytes_per_token)
        self._line: socket.socket | None = None
        self._gloo: TwoRanks | None = None

    def service(self) -> KvTransferService:
        """What the sink fetches from."""
        shelf = Shelf(self.book, InstanceBlocks(self._end.blocks), self._host.clock)
        return KvTransferService(
            book=self.book, shelf=shelf, host=self._host, capabilities=CAPABILITIES
        )

    async def prepare(self, handoff_id: str, num_tokens: int) -> dict[str, Any]:
        """A whole prompt's KV under lease."""
        source = self.book.accept(HandoffId(handoff_id), FENCE, on_ended=lambda _: None)
        needed = LAYOUT.num_blocks(num_tokens)
        ids = self._end.blocks.allocate(needed, BlockState.OWNED)
        self.book.started(source, ids, num_tokens)
        token = FirstToken(
            token_id=1, position=0, finish_reason=None, sampled_at_s=self._host.clock.now_s()
        )
        self.book.finished(source, token)
        self._end.store.first_gather_s = None
        return {}

    async def finish(self, handoff_id: str, num_tokens: int) -> dict[str, Any]:
        """What was sent, and end the lease if the sink has not yet."""
        source = self.book.source(HandoffId(handoff_id))
        answer = {
            "digest": self._end.store.digest(source.block_ids, num_tokens),
            "first_gather_s": self._end.store.first_gather_s,
        }
        self.book.release(HandoffId(handoff_id), FENCE, committed=True)
        return answer

    async def cpu(self) -> dict[str, Any]:
        """Of this process so far."""
        return {"cpu_s": time.process_time()}

    async def tcp(self, num_bytes: int, port: int) -> dict[str, Any]:
        """Send so much by one blocking socket, which stays open."""
        self._line = self._line or socket.create_connection((LOOPBACK, port), TIMEOUT_S)
        await asyncio.to_thread(self._line.sendall, self._plain.next(num_bytes).data)
        return {}

    async def gloo(self, num_bytes: int, port: int) -> dict[str, Any]:
        """Send so much through a Gloo group of two."""
        await asyncio.to_thread(self._send_gloo, num_bytes, port)
        return {}

    def _send_gloo(self, num_bytes: int, port: int) -> None:
        if self._gloo is None:
            store = TCPStore(LOOPBACK, port, 2, is_master=False)
            self._gloo = connect_gloo(store, 0, LOOPBACK, TIMEOUT_S)
        self._gloo.send([torch.from_numpy(self._plain.next(num_bytes))], 1, TAG).wait()

    def close(self) -> None:
        """After the last answer."""
        self._host.carriers.close()


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def main() -> None:
    """Serve until standard input ends."""
    source, server = Source(), await build(Plane.WORKER, ())
    source.service().add_to(server.grpc)
    port = bind(server, f"{LOOPBACK}:0")
    await server.grpc.start()
    _say({"address": f"{LOOPBACK}:{port}"})
    commands: dict[str, Command] = {
        each.__name__: each
        for each in (source.prepare, source.finish, source.cpu, source.tcp, source.gloo)
    }
    lines = await _lines()
    while line := await lines.readline():
        asked = json.loads(line)
        _say(await commands[asked.pop("do")](**asked))
    source.close()
    await server.grpc.stop(grace=None)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
