"""`baton status`."""

import asyncio
import sys
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from cli.errors import error_console, errors_told
from cli.running import find_routers

if TYPE_CHECKING:
    from rpc.pb.cluster_pb2 import InstanceStatus, StatusReply


def show_status(address: str | None, *, json_output: bool) -> None:
    """A table, or JSON; errors are one line and exit status 1 or 4."""
    console = error_console()
    with errors_told(console):
        router, reply = asyncio.run(_status(address))
        if json_output:
            from cli.asking import as_json

            sys.stdout.write(as_json(reply) + "\n")
        else:
            Console(highlight=False).print(_table(router, reply))


async def _status(address: str | None) -> "tuple[str, StatusReply]":
    from cli.asking import ask_cluster
    from rpc.pb.cluster_pb2 import StatusRequest

    router = find_routers(address)[0]
    return router, await ask_cluster(router, "Status", StatusRequest())


def _table(router: str, reply: "StatusReply") -> Table:
    table = Table(
        title=f"router {router}: {reply.num_requests} requests running, {reply.num_queued} queued",
        # Nine columns have to fit into a terminal of 80.
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    columns = (
        "instance",
        "role",
        "address",
        "link",
        "prefill",
        "decode",
        "blocks",
        "hits",
        "books",
    )
    for column in columns:
        table.add_column(column, no_wrap=column in ("instance", "address"))
    for instance in reply.instances:
        table.add_row(*_row(instance))
    return table


def _row(instance: "InstanceStatus") -> tuple[str, ...]:
    from rpc.pb.types_pb2 import Role

    load = instance.load
    draining = ", draining" if load.draining else ""
    return (
        instance.instance_id,
        Role.Name(instance.role).removeprefix("ROLE_").lower(),
        ", ".join(instance.addresses),
        ("up" if instance.connected else "down") + draining,
        str(load.num_prefilling),
        str(load.num_decoding + load.num_incoming),
        f"{load.num_blocks - load.num_free_blocks}/{load.num_blocks}",
        f"{load.num_hit_tokens / load.num_queried_tokens:.0%}" if load.num_queried_tokens else "",
        instance.integrity.problem or ("ok" if instance.HasField("integrity") else "not asked"),
    )
