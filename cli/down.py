"""`baton down`."""

import asyncio
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cli import cluster_options as o
from cli.errors import error_console, errors_told
from core.errors import BatonError
from core.limits import MAX_TIMEOUT_S

if TYPE_CHECKING:
    from rich.console import Console

    from cli.running import ClusterNote

END_EXTRA_S = 60.0
"""Past the drain: routers first, then instances, then what Ray has to be told."""

DrainS = Annotated[
    float,
    typer.Option(
        "--drain-s", min=0.0, max=MAX_TIMEOUT_S, help="What is not answered by then is broken off."
    ),
]


def down(drain_s: DrainS = 30.0, *, name: o.Name = None) -> None:
    """End a cluster that `baton up` started: routers drain, then instances; nothing is left behind.

    Ray is ended, too, where `baton up` started it; settings, logs and the plan in the registry go.
    """
    console = error_console()
    with errors_told(console):
        from deploy.interrupt import until_signal

        asyncio.run(until_signal(_down(name, drain_s, console)))


async def _down(name: str | None, drain_s: float, console: "Console") -> None:
    from cli.running import NoCluster, forget_note, read_note
    from deploy.bring_up import Site, clear_ground

    note = read_note(name)
    if not note.registry_url:
        raise NoCluster(f"{note.name} is served by `baton serve`: Ctrl-C there ends it")
    say = partial(console.print, style="dim")
    try:
        async with asyncio.timeout(drain_s + END_EXTRA_S):
            await _end_members(note, drain_s, say)
    except (TimeoutError, BatonError) as error:
        # Whatever a controller could not end is ended with its processes.
        say(f"the controller did not end it: {error or 'not in time'}")
    say("ending Ray" if note.home else "ending the controller")
    site = Site(name=note.name, ray_address="" if note.home else note.ray_address)
    await _forget_registry(note, say)
    await clear_ground(site)
    forget_note(note.name)
    console.print(f"cluster {note.name} is down")


async def _end_members(note: "ClusterNote", drain_s: float, say: "partial[None]") -> None:
    from cli.controller import ask_controller, controller_of
    from cli.watching import Away, states
    from rpc.pb.controller_pb2 import EndRequest

    address = await controller_of(note.name)
    await ask_controller(address, "End", EndRequest(drain_s=drain_s))
    num_told = -1
    async with aclosing(states(lambda: controller_of(note.name))) as watched:
        async for state in watched:
            if isinstance(state, Away):
                return  # it ended itself, last of all
            if len(state.members) != num_told:
                num_told = len(state.members)
                say(f"{num_told} members left")
            if not state.members:
                return


async def _forget_registry(note: "ClusterNote", say: "partial[None]") -> None:
    from registry.api import RegistryUnavailable
    from registry.connect import connect

    registry = connect(note.registry_url, note.name)
    try:
        await registry.forget()
    except RegistryUnavailable as error:
        if not note.home:
            say(f"its keys stay in the registry: {error}")
    finally:
        await registry.close()
