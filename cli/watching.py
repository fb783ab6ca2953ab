"""Watching a controller through its restarts.

Imported only by commands that are called: the base installation has no gRPC.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import grpc.aio

from cli.controller import ANSWER_S, ControllerSilent, Find, silent
from core.errors import BatonError, DeadlinePassed
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import controller_pb2, controller_pb2_grpc
from rpc.status import error_from

PAUSE_S = 1.0
"""Before it is looked up again; Ray starts a dead one anew in a few seconds."""
WATCH_S = 60.0
"""Of one stream; then the leader is looked up again, so that one which has lost the lead without
knowing it is not believed for longer."""


@dataclass(frozen=True, slots=True)
class Away:
    """No controller was heard, but it is tried again."""

    error: BatonError


async def states(
    find: Find, *, pause_s: float = PAUSE_S, watch_s: float = WATCH_S
) -> AsyncGenerator[controller_pb2.ClusterState | Away, None]:
    """The state now and after each change, without end; an Away for each try that failed.

    Raises errors that another try does not mend.
    """
    while True:
        try:
            async with aclosing(_stream(await find(), watch_s)) as stream:
                async for state in stream:
                    yield state
            continue
        except BatonError as error:
            if not error.retryable:
                raise
            away = Away(error)
        yield away
        await asyncio.sleep(pause_s)


async def _stream(
    address: str, watch_s: float
) -> AsyncGenerator[controller_pb2.ClusterState, None]:
    """Of one controller; ends when it is time to look it up again. Raises BatonError."""
    heard = False
    async with dial(address, plane=Plane.CLIENT) as channel:
        stub = controller_pb2_grpc.ControllerStub(channel)
        call = stub.Watch(controller_pb2.WatchRequest(), timeout=watch_s)
        try:
            # The first state is known already; any later one may be long in coming.
            async with asyncio.timeout(ANSWER_S):
                state = await call.read()
            # Its other value is the mark of the end.
            while isinstance(state, controller_pb2.ClusterState):
                heard = True
                yield state
                state = await call.read()
        except TimeoutError:
            raise silent(address, DeadlinePassed("no state")) from None
        except grpc.aio.AioRpcError as error:
            ours = error_from(error)
            if heard and isinstance(ours, DeadlinePassed):
                return
            raise silent(address, ours) from None
    raise ControllerSilent(f"the controller at {address} has ended: it is looked up again")
