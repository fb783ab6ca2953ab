"""`baton status`."""

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from cli import cluster_options as o
from cli.errors import error_console, errors_told
from cli.pictures import cluster_picture, plain_console, role_word, slim_table
from cli.running import NobodyAnswers, NoCluster, NoteDamaged, find_routers, read_note, routers_now
from core.errors import BatonError

if TYPE_CHECKING:
    from rich.console import Console

    from rpc.pb.cluster_pb2 import InstanceStatus, StatusReply
    from rpc.pb.controller_pb2 import ClusterState

COLUMNS = ("instance", "role", "address", "link", "prefill", "decode", "blocks", "hits", "books")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was found out, from whom."""

    router: str
    reply: "StatusReply | None"
    """None: no router answered, and `troubles` says why."""
    state: "ClusterState | None"
    """None: the cluster has no controller, or none was heard."""
    troubles: tuple[str, ...]
    """One line each."""


def status(address: o.Address = None, *, name: o.Name = None, json_output: o.Json = False) -> None:
    """Show a running cluster: its plan, who is in it, its load and its books.

    A cluster of `baton up` is asked for its plan, for instances that start or
    drain, and for what happened last; with --address, or under `baton serve`,
    one router says what it sees.
    """
    show_status(address, name=name, json_output=json_output)


def show_status(address: str | None, *, json_output: bool, name: str | None = None) -> None:
    """Tables, or JSON; errors are one line and exit status 1 or 4."""
    console = error_console()
    with errors_told(console):
        seen = asyncio.run(_look(address, name))
        for trouble in seen.troubles:
            console.print(trouble)
        if json_output:
            sys.stdout.write(_json(seen) + "\n")
        else:
            _show(plain_console(), seen)


async def _look(address: str | None, name: str | None) -> Seen:
    import cli.asking  # noqa: F401 - the base installation says so before anything is looked up

    if address is not None or not read_note(name).registry_url:
        router = find_routers(address, name)[0]
        return Seen(router=router, reply=await _ask(router), state=None, troubles=())
    from cli.controller import controller_of, state_now

    try:
        state = await state_now(await controller_of(name))
    except (NoCluster, NoteDamaged):
        raise
    except BatonError as error:
        return await _without_controller(name, str(error))
    return await _with_controller(state)


async def _with_controller(state: "ClusterState") -> Seen:
    """Its routers are those that serve; while a cluster starts there is none yet."""
    from cli.controller import serving_routers

    troubles = []
    for router in serving_routers(state):
        try:
            reply = await _ask(router)
            return Seen(router=router, reply=reply, state=state, troubles=())
        except BatonError as error:
            troubles.append(f"router {router}: {error}")
    troubles = troubles or ["no router serves yet"]
    return Seen(router="", reply=None, state=state, troubles=tuple(troubles))


async def _without_controller(name: str | None, why: str) -> Seen:
    router = (await routers_now(None, name))[0]
    try:
        reply = await _ask(router)
    except BatonError as error:
        raise NobodyAnswers((why, f"router {router}: {error}")) from None
    return Seen(
        router=router, reply=reply, state=None, troubles=(f"the router's view only: {why}",)
    )


async def _ask(router: str) -> "StatusReply":
    from cli.asking import ask_cluster
    from rpc.pb.cluster_pb2 import StatusRequest

    reply: StatusReply = await ask_cluster(router, "Status", StatusRequest())
    return reply


def _json(seen: Seen) -> str:
    """The router's document; under `controller` the controller's, where it was asked."""
    from cli.asking import as_dict

    document = as_dict(seen.reply) if seen.reply is not None else {}
    if seen.state is not None:
        document["controller"] = as_dict(seen.state)
    return json.dumps(document, indent=2)


def _show(console: "Console", seen: Seen) -> None:
    if seen.state is not None:
        console.print(cluster_picture(seen.state))
    if seen.state is not None and seen.reply is not None:
        console.print(Text(""))
    if seen.reply is not None:
        console.print(_table(seen.router, seen.reply))


def _table(router: str, reply: "StatusReply") -> Table:
    title = f"router {router}: {reply.num_requests} requests running, {reply.num_queued} queued"
    # Nine columns have to fit into a terminal of 80.
    table = slim_table(title=title)
    for column in COLUMNS:
        table.add_column(column, no_wrap=column in ("instance", "address"))
    for instance in reply.instances:
        table.add_row(*_row(instance))
    return table


def _row(instance: "InstanceStatus") -> tuple[str, ...]:
    load = instance.load
    draining = ", draining" if load.draining else ""
    return (
        instance.instance_id,
        role_word(instance.role),
        ", ".join(instance.addresses),
        ("up" if instance.connected else "down") + draining,
        str(load.num_prefilling),
        str(load.num_decoding + load.num_incoming),
        f"{load.num_blocks - load.num_free_blocks}/{load.num_blocks}",
        f"{load.num_hit_tokens / load.num_queried_tokens:.0%}" if load.num_queried_tokens else "",
        instance.integrity.problem or ("ok" if instance.HasField("integrity") else "not asked"),
    )
