"""`baton top`."""

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from cli import cluster_options as o
from cli.errors import error_console, errors_told
from cli.pictures import plain_console
from cli.running import NobodyAnswers, read_note, routers_now
from cli.top_picture import picture
from core.clock import MonotonicClock, unix_time_s
from core.waiting import wait_at_most
from deploy.interrupt import Interrupted, until_signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from cli.top_picture import RouterSeen, View
    from cli.top_sight import Sight

REFRESH_S = 1.0
FIRST_S = 12.0
"""For the first picture: looking a controller up and asking it are both bounded by less."""


Once = Annotated[bool, typer.Option("--once", help="Show one picture, and end.")]


def top(
    address: o.Address = None,
    *,
    name: o.Name = None,
    once: Once = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each refresh.")
    ] = False,
) -> None:
    """Watch a running cluster: who works on what, how full it is, what changes; Ctrl-C ends.

    prefill and decode count requests; blocks is the share of KV cache in use;
    prompt/s are prompt tokens taken in, cached ones too; steps/s are forward
    passes. A decode instance writes about as many tokens a second as it has
    requests in decode, times its steps.
    """
    console = error_console()
    with errors_told(console):
        asyncio.run(_top(address, name, once=once, json_output=json_output))


async def _top(address: str | None, name: str | None, *, once: bool, json_output: bool) -> None:
    sight, console = _sight(address, name), plain_console()
    show = _write_json if json_output else partial(_print, console)
    # Looking is all that is done: a signal is the regular end.
    with suppress(Interrupted):
        if once:
            show(await until_signal(_first(sight)))
        elif json_output or not console.is_terminal:
            await until_signal(_each(sight, show))
        else:
            await until_signal(_live(sight, console))


def _sight(address: str | None, name: str | None) -> "Sight":
    from cli.controller import controller_of
    from cli.top_sight import Sight

    controlled = address is None and read_note(name).registry_url
    find = partial(controller_of, name) if controlled else None
    return Sight(find, partial(routers_now, address, name), MonotonicClock())


async def _first(sight: "Sight") -> "View":
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(sight.watch())
        await wait_at_most(sight.heard, FIRST_S)
        view = await sight.look()
        watching.cancel()
    if view.state is None and all(router.reply is None for router in view.routers):
        raise NobodyAnswers((view.trouble, *map(_trouble, view.routers)))
    return view


def _trouble(router: "RouterSeen") -> str:
    return f"router {router.address}: {router.trouble}" if router.address else router.trouble


async def _each(sight: "Sight", show: "Callable[[View], None]") -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(sight.watch())
        await wait_at_most(sight.heard, FIRST_S)
        while True:
            show(await sight.look())
            await asyncio.sleep(REFRESH_S)


async def _live(sight: "Sight", console: "Console") -> None:
    hint = Text("Ctrl-C ends", style="dim")
    with Live(Text("looking ..."), console=console, screen=True, auto_refresh=False) as live:
        await _each(sight, lambda view: live.update(Group(picture(view), hint), refresh=True))


def _print(console: "Console", view: "View") -> None:
    console.print(picture(view))
    console.print()


def _write_json(view: "View") -> None:
    """One line."""
    from cli.asking import as_dict

    document = {
        "at_unix_s": unix_time_s(),
        "controller": as_dict(view.state) if view.state is not None else None,
        "trouble": view.trouble,
        "routers": [
            {
                "address": router.address,
                "trouble": router.trouble,
                "status": as_dict(router.reply) if router.reply is not None else None,
            }
            for router in view.routers
        ],
        "paces": {name: asdict(pace) for name, pace in view.paces.items()},
    }
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
