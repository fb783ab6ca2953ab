"""`baton drain`."""

import asyncio
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from cli import cluster_options as o
from cli.bench import progress_line
from cli.errors import error_console, errors_told
from cli.pictures import SERVING
from core.clock import Clock, MonotonicClock
from core.errors import BatonError
from core.limits import MAX_TIMEOUT_S
from deploy.interrupt import Interrupted, until_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console

    from cli.controller import Find
    from rpc.pb.controller_pb2 import ClusterState, MemberState

REPLACED_S = 900.0
"""After the drain, for the other one to serve: a large model takes minutes to load."""
TICK_S = 1.0
"""Between two looks at the clock while nothing changes."""

Instance = Annotated[
    str, typer.Argument(metavar="INSTANCE", help="An instance or a router, as `baton status` says.")
]
TimeoutS = Annotated[
    float,
    typer.Option(
        "--timeout-s",
        min=0.0,
        max=MAX_TIMEOUT_S,
        help="Answers that take longer than that go on elsewhere.",
    ),
]
Wait = Annotated[
    bool,
    typer.Option("--wait/--no-wait", help="Until it is gone and another one serves in its place."),
]


class UnknownMember(BatonError):
    """Nobody in the cluster has that name."""

    status = "NOT_FOUND"


class NotReplaced(BatonError):
    """The cluster is still short of a member, or one still drains."""

    status = "DEADLINE_EXCEEDED"


def drain(
    instance: Instance,
    timeout_s: TimeoutS = 30.0,
    *,
    wait: Wait = True,
    name: o.Name = None,
) -> None:
    """Take one instance or router out of a running cluster; another one takes its place.

    It takes no new requests and finishes those it has; no request is lost. Use
    it before work on a host, or when one instance misbehaves. Ctrl-C ends only
    the watching, not the drain.
    """
    console = error_console()
    with errors_told(console):
        try:
            asyncio.run(until_signal(_drain(instance, timeout_s, name, console, wait=wait)))
        except Interrupted as interrupted:
            console.print(f"{instance} drains on: see `baton status`")
            raise typer.Exit(interrupted.exit_status) from None


async def _drain(
    instance: str, timeout_s: float, name: str | None, console: "Console", *, wait: bool
) -> None:
    from functools import partial

    from cli.controller import ask_controller, controller_of, state_now
    from rpc.pb.controller_pb2 import DrainMemberRequest

    address = await controller_of(name)
    before = await state_now(address)
    leaving = member_of(before.members, instance)
    request = DrainMemberRequest(name=instance, timeout_s=timeout_s)
    await ask_controller(address, "DrainMember", request)
    if not wait:
        console.print(f"{instance} drains: see `baton status`")
        return
    farewell = Farewell(
        instance=instance,
        actor_id=leaving.actor_id,
        role=leaving.role,
        num_serving=num_serving(before, leaving.role),
    )
    with _told(console) as tell:
        waiting = Waiting(farewell, MonotonicClock(), tell)
        await waiting.until_replaced(partial(controller_of, name), timeout_s + REPLACED_S)
    console.print(f"{instance} is gone, and another one serves in its place")


def member_of(members: "Iterable[MemberState]", name: str) -> "MemberState":
    """The one of that name. Raises UnknownMember, which says whom there is."""
    by_name = {member.name: member for member in members}
    if name not in by_name:
        there_is = ", ".join(sorted(by_name)) or "nobody"
        raise UnknownMember(f"no instance or router {name}; there is {there_is}")
    return by_name[name]


def num_serving(state: "ClusterState", role: int) -> int:
    """Members of one role that serve."""
    return sum(m.role == role and m.state == SERVING for m in state.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """Who leaves, and what there was before."""

    instance: str
    actor_id: str
    """A router's successor has its name, and another one of these."""
    role: int
    num_serving: int
    """Of its role, itself included."""

    def left(self, state: "ClusterState") -> "MemberState | None":
        """It, while it is still there."""
        for member in state.members:
            if member.name == self.instance and member.actor_id == self.actor_id:
                return member
        return None

    def is_over(self, state: "ClusterState") -> bool:
        """It is gone, and as many serve as before; or as many as are wanted now."""
        if self.left(state) is not None:
            return False
        return state.settled or num_serving(state, self.role) >= self.num_serving

    def words(self, state: "ClusterState") -> str:
        """What is still waited for."""
        if (member := self.left(state)) is not None:
            return f"{self.instance} is {member.state}"
        waits_for = ", ".join(state.waits_for)
        return f"{self.instance} is gone; " + (waits_for or "its successor is started")


class Waiting:
    """Follows one drain to its end, and says each second how it is."""

    def __init__(
        self, farewell: Farewell, clock: Clock, tell: "Callable[[str, float], None]"
    ) -> None:
        self._farewell = farewell
        self._clock = clock
        self._tell = tell
        self._words = f"{farewell.instance} drains"

    async def until_replaced(self, find: "Find", limit_s: float) -> None:
        """Raises NotReplaced after `limit_s` seconds."""
        start_s = self._clock.now_s()
        try:
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
                ticking = group.create_task(self._tick(start_s))
                await self._follow(find)
                ticking.cancel()
        except TimeoutError:
            raise NotReplaced(
                f"{self._words} after {limit_s:g} s: see `baton status` for what is missing and"
                " `baton logs controller` for why"
            ) from None

    async def _follow(self, find: "Find") -> None:
        from cli.watching import Away, states

        async with aclosing(states(find)) as stream:
            async for found in stream:
                if isinstance(found, Away):
                    self._words = f"controller restarting: {found.error}"
                elif self._farewell.is_over(found):
                    return
                else:
                    self._words = self._farewell.words(found)

    async def _tick(self, start_s: float) -> None:
        while True:
            self._tell(self._words, self._clock.now_s() - start_s)
            await asyncio.sleep(TICK_S)


@contextmanager
def _told(console: "Console") -> "Iterator[Callable[[str, float], None]]":
    """One line that counts seconds; where none can be written over, a line for what is new."""
    told = [""]
    with progress_line(console) as on_progress:

        def tell(words: str, after_s: float) -> None:
            if console.is_terminal or words != told[-1]:
                told.append(words)
                on_progress(f"{words}, {after_s:.0f} s")

        yield tell
