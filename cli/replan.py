"""`baton replan`."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cli import cluster_options as o
from cli.errors import error_console, errors_told
from cli.pictures import plain_console, slim_table
from core.plan import Plan, PoolPlan, parse_plan
from deploy.interrupt import Interrupted, until_signal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rpc.pb.controller_pb2 import ReplanReply

PLAN_S = 300.0
"""For the search; its caller may leave before, and it goes on."""

NONE = "none"

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One role in the plan in force and in the one proposed."""

    role: str
    before: str
    """For example `2 of 2x1`: tp × pp."""
    after: str


def replan(*, dry_run: DryRun = False, name: o.Name = None, json_output: o.Json = False) -> None:
    """Plan a running cluster anew, from what it served of late.

    The controller does the same by itself where the plan says online.enabled;
    this asks it now.
    """
    console = error_console()
    with errors_told(console):
        try:
            in_force, reply = asyncio.run(until_signal(_replan(name, console, dry_run=dry_run)))
        except Interrupted as interrupted:
            console.print("no longer waited for; see `baton status` for the plan in force")
            raise typer.Exit(interrupted.exit_status) from None
        if json_output:
            sys.stdout.write(_json(in_force, reply) + "\n")
        else:
            _show(plain_console(), in_force, reply)


async def _replan(
    name: str | None, console: "Console", *, dry_run: bool
) -> "tuple[str, ReplanReply]":
    from cli.controller import ask_controller, controller_of, state_now
    from rpc.pb.controller_pb2 import ReplanRequest

    address = await controller_of(name)
    in_force = (await state_now(address)).plan_toml
    with _planning(console):
        reply: ReplanReply = await ask_controller(
            address, "Replan", ReplanRequest(dry_run=dry_run), timeout_s=PLAN_S
        )
    return in_force, reply


@contextmanager
def _planning(console: "Console") -> Iterator[None]:
    if not console.is_terminal:
        yield
        return
    with console.status("planning from what was served of late ..."):
        yield


def changes(before: Plan | None, after: Plan) -> list[Change]:
    """Role by role, those that one of both has; None: no plan was ever put."""
    rows = [
        Change(
            role=role.value,
            before=_pool(before.pools[role]) if before else NONE,
            after=_pool(after.pools[role]),
        )
        for role in after.pools
    ]
    num_before = str(before.router.replicas) if before else NONE
    rows.append(Change(role="router", before=num_before, after=str(after.router.replicas)))
    return [row for row in rows if (row.before, row.after) != (NONE, NONE)]


def _pool(pool: PoolPlan) -> str:
    return f"{pool.replicas} of {pool.layout}" if pool.replicas else NONE


def _json(in_force: str, reply: "ReplanReply") -> str:
    document = {
        "applied": reply.applied,
        "reasons": list(reply.reasons),
        "plan_in_force": in_force,
        "plan_proposed": reply.plan_toml,
    }
    return json.dumps(document, indent=2)


def _show(console: "Console", in_force: str, reply: "ReplanReply") -> None:
    for reason in reply.reasons:
        console.print(reason)
    if not reply.plan_toml:
        console.print("nothing better was found: the plan stays as it is")
        return
    console.print(Text(""), _table(in_force, reply.plan_toml), Text(""), sep="\n")
    if reply.applied:
        console.print("put in force: `baton top` shows how the cluster becomes so")
    else:
        console.print("not put in force: `baton replan` without --dry-run does that")


def _table(in_force: str, proposed: str) -> "Table":
    before = parse_plan(in_force, "plan in force") if in_force else None
    table = slim_table("role", "in force", "proposed", "")
    for change in changes(before, parse_plan(proposed, "plan proposed")):
        differs = "" if change.before == change.after else "changes"
        table.add_row(change.role, change.before, change.after, differs)
    return table
