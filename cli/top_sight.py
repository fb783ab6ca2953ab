"""What `baton top` knows of a cluster, and how it keeps knowing it.

Imported only by commands that are called: the base installation has no gRPC.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from cli.asking import ask_cluster
from cli.controller import Find, serving_routers
from cli.top_picture import Pace, RouterSeen, View, statuses
from cli.watching import Away, states
from core.clock import Clock
from core.errors import BatonError
from rpc.pb import cluster_pb2
from rpc.pb.controller_pb2 import ClusterState

ASK_S = 2.0
"""For a router, which itself waits a second for its instances' books."""
MAX_ROUTERS = 16
"""More are not asked each second; each knows all instances."""

Routers = Callable[[], Awaitable[Sequence[str]]]
"""Where they are while no controller says so; raises BatonError."""


@dataclass(frozen=True, slots=True)
class Counted:
    """An instance's counters at one moment."""

    at_s: float
    num_queried_tokens: int
    num_steps: int


class Sight:
    """What was heard last; one task watches the controller, another asks the routers."""

    def __init__(self, find: Find | None, routers: Routers, clock: Clock) -> None:
        """`find` is None where there is no controller."""
        self._find = find
        self._routers = routers
        self._clock = clock
        self._state: ClusterState | None = None
        self._state_at_s = 0.0
        self._trouble = ""
        self._counted: Mapping[str, Counted] = {}
        self.heard = asyncio.Event()
        """A state, or why there is none."""
        if find is None:
            self.heard.set()

    async def watch(self) -> None:
        """Without end; raises what another try does not mend."""
        if self._find is None:
            return
        async with aclosing(states(self._find)) as stream:
            async for found in stream:
                self._note(found)

    async def look(self) -> View:
        """Ask the routers, and put together what is known."""
        seen = await self._ask_routers()
        now_s = self._clock.now_s()
        counted = counters(seen, now_s)
        found = paces(self._counted, counted)
        self._counted = {**self._counted, **counted}
        return View(
            state=self._state,
            state_age_s=now_s - self._state_at_s,
            trouble=self._trouble,
            routers=seen,
            paces=found,
        )

    def _note(self, found: ClusterState | Away) -> None:
        if isinstance(found, Away):
            self._trouble = f"controller restarting: {found.error}"
        else:
            self._state, self._trouble = found, ""
            self._state_at_s = self._clock.now_s()
        self.heard.set()

    async def _ask_routers(self) -> list[RouterSeen]:
        addresses = serving_routers(self._state) if self._state is not None else ()
        if self._state is None:
            try:
                addresses = tuple(await self._routers())
            except BatonError as error:
                return [RouterSeen(address="", reply=None, trouble=str(error))]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ask(a)) for a in addresses[:MAX_ROUTERS]]
        return [task.result() for task in tasks]


async def _ask(address: str) -> RouterSeen:
    try:
        async with asyncio.timeout(ASK_S):
            reply = await ask_cluster(address, "Status", cluster_pb2.StatusRequest())
    except TimeoutError:
        return RouterSeen(address=address, reply=None, trouble="no answer")
    except BatonError as error:
        return RouterSeen(address=address, reply=None, trouble=error.reason)
    return RouterSeen(address=address, reply=reply)


def counters(routers: Sequence[RouterSeen], at_s: float) -> dict[str, Counted]:
    """Of each instance that gave its books."""
    return {
        name: Counted(at_s, status.load.num_queried_tokens, status.integrity.num_steps)
        for name, status in statuses(routers).items()
        if status.HasField("integrity")
    }


def paces(before: Mapping[str, Counted], now: Mapping[str, Counted]) -> dict[str, Pace]:
    """From counters twice read; who was started anew in between has none."""
    found = {}
    for name, counted in now.items():
        old = before.get(name)
        if old is None or counted.at_s <= old.at_s:
            continue
        tokens = counted.num_queried_tokens - old.num_queried_tokens
        steps = counted.num_steps - old.num_steps
        if tokens >= 0 and steps >= 0:
            duration_s = counted.at_s - old.at_s
            found[name] = Pace(tokens / duration_s, steps / duration_s)
    return found
