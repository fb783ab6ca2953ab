"""`baton status`."""

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cli.fetch import error_console, serve_extra_missing
from cli.running import find_routers
from core.errors import BatonError

if TYPE_CHECKING:
    from rpc.pb.cluster_pb2 import InstanceStatus, StatusReply

TIMEOUT_S = 5.0


def show_status(address: str | None, *, json_output: bool) -> None:
    """A table, or JSON; errors are one line and exit status 1 or 4."""
    console = error_console()
    try:
        router, reply = asyncio.run(_status(address))
        if json_output:
            sys.stdout.write(_as_json(reply) + "\n")
        else:
            Console(highlight=False).print(_table(router, reply))
    except ModuleNotFoundError as error:
        console.print(serve_extra_missing(error))
        raise typer.Exit(4) from None
    except BatonError as error:
        console.print(f"{error.reason}: {error}")
        raise typer.Exit(1) from None


async def _status(address: str | None) -> "tuple[str, StatusReply]":
    import grpc.aio

    from rpc.dial import dial
    from rpc.options import Plane
    from rpc.pb import cluster_pb2, cluster_pb2_grpc
    from rpc.status import error_from

    router = find_routers(address)[0]
    async with dial(router, plane=Plane.CLIENT) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        try:
            return router, await stub.Status(cluster_pb2.StatusRequest(), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None


def _as_json(reply: "StatusReply") -> str:
    from google.protobuf.json_format import MessageToDict

    document = MessageToDict(
        reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(document, indent=2)


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
