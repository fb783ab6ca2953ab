"""What the fetching side says on its stream: one writer, since a call takes one write at a time."""

import asyncio
from contextlib import suppress

import grpc.aio

from rpc.kv_wire import FetchCall
from rpc.pb import kv_transfer_pb2 as pb


class Outgoing:
    """Requests of one stream, written in order. Bounded by what they are: an opening, at most a
    fallback, credits that grow, so many refetches; what was emptied is one number."""

    def __init__(self, call: FetchCall) -> None:
        self._call = call
        self._requests: list[pb.FetchRequest] = []
        self._num_emptied = 0
        self._num_emptied_said = 0
        self._changed = asyncio.Event()

    def put(self, request: pb.FetchRequest) -> None:
        """Say this as soon as what came before is said."""
        self._requests.append(request)
        self._changed.set()

    def emptied(self, num_segments: int) -> None:
        """Say that the payloads of so many segments are not needed any more."""
        self._num_emptied = num_segments
        self._changed.set()

    async def run(self) -> None:
        """Loop. When the stream has ended it returns: whoever reads it says why."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                self._changed.clear()
                while (request := self._next()) is not None:
                    await self._call.write(request)
                await self._changed.wait()

    def _next(self) -> pb.FetchRequest | None:
        if self._requests:
            return self._requests.pop(0)
        if self._num_emptied == self._num_emptied_said:
            return None
        self._num_emptied_said = self._num_emptied
        return pb.FetchRequest(emptied=pb.Emptied(num_segments=self._num_emptied))
