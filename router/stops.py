"""Stop calls to one decode instance: each retried a few times, none waited for by a request."""

import asyncio
import logging
from collections import OrderedDict

import grpc.aio

from core.ids import HandoffId
from core.request import Fence
from rpc.convert import fence_to_pb
from rpc.pb import workers_pb2, workers_pb2_grpc

logger = logging.getLogger(__name__)

TIMEOUT_S = 1.0
MAX_TRIES = 3
"""With TIMEOUT_S as long as an instance may be silent before it is lost."""
RETRY_S = 0.1
MAX_REMEMBERED = 4096
"""Of requests stopped already; one forgotten is stopped once more, which does no harm."""
MAX_AT_ONCE = 32


class Stops:
    """What is to be stopped, and what was."""

    def __init__(self, stub: workers_pb2_grpc.DecodeWorkerStub) -> None:
        self._stub = stub
        self._due: dict[HandoffId, Fence] = {}
        self._told: OrderedDict[HandoffId, Fence] = OrderedDict()
        self._news = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)

    def add(self, handoff_id: HandoffId, fence: Fence) -> None:
        """Stop this attempt and every earlier one, unless that was said already."""
        told = self._told.get(handoff_id)
        if told is not None and told >= fence:
            return
        self._told[handoff_id] = fence
        self._told.move_to_end(handoff_id)
        while len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        self._due[handoff_id] = fence
        self._news.set()

    def clear(self) -> None:
        """The instance is lost; what it still has it ends by itself."""
        self._due.clear()
        self._told.clear()

    async def run(self) -> None:
        """Call until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._news.wait()
                self._news.clear()
                due, self._due = self._due, {}
                for handoff_id, fence in due.items():
                    await self._slots.acquire()
                    group.create_task(self._stop(handoff_id, fence))

    async def _stop(self, handoff_id: HandoffId, fence: Fence) -> None:
        request = workers_pb2.StopRequest(handoff_id=handoff_id, fence=fence_to_pb(fence))
        try:
            for _ in range(MAX_TRIES):
                if await self._try(request):
                    return
                await asyncio.sleep(RETRY_S)
            logger.warning("stop not answered handoff_id=%s tries=%d", handoff_id, MAX_TRIES)
        finally:
            self._slots.release()

    async def _try(self, request: workers_pb2.StopRequest) -> bool:
        try:
            await self._stub.Stop(request, timeout=TIMEOUT_S)  # type: ignore[misc]  # its sync twin's
        except grpc.aio.AioRpcError as error:
            # A stale fence means that it has moved on, which is as good as stopped.
            return error.code() is grpc.StatusCode.ABORTED
        return True
