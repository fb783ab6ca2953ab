"""`baton logs`."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from cli import cluster_options as o
from cli.errors import error_console, errors_told
from core.errors import BatonError
from deploy.interrupt import Interrupted, until_signal

if TYPE_CHECKING:
    from rich.console import Console

    from rpc.pb.controller_pb2 import LogsReply

POLL_S = 1.0
FIRST_BYTES = 64 * 1024
"""About 500 lines; more are asked for where lines are longer."""
MAX_BYTES = 1024 * 1024
"""Of one reply, by the contract."""
CONTROLLER = "controller"
ALL = -1

Ask = Callable[[int, int], Awaitable["LogsReply"]]
"""(offset, bytes at most) → a piece; raises BatonError."""

Tail = Annotated[
    int,
    typer.Option(
        min=ALL, help="Begin so many lines before the end, of the last MiB; -1: all that is kept."
    ),
]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")
]


class NoLog(BatonError):
    """Nobody of that name has ever logged."""

    status = "NOT_FOUND"


def logs(
    member: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="An instance or a router, as `baton status` says, also one that has ended; or "
            "controller.",
        ),
    ],
    tail: Tail = 100,
    *,
    follow: Follow = False,
    name: o.Name = None,
) -> None:
    """Show what an instance, a router or the controller of a running cluster has logged."""
    console = error_console()
    with errors_told(console):
        try:
            asyncio.run(until_signal(_logs(member, tail, name, console, follow=follow)))
        except Interrupted as interrupted:
            # Of following it is the regular end.
            if not follow:
                raise typer.Exit(interrupted.exit_status) from None


async def _logs(
    member: str, tail: int, name: str | None, console: "Console", *, follow: bool
) -> None:
    from cli.controller import controller_of

    ask = _asking(member, await controller_of(name), name)
    try:
        offset = await write_tail(ask, tail, sys.stdout)
    except BatonError as error:
        if error.status != "NOT_FOUND":
            raise
        raise NoLog(await _whom_there_is(member, name, error)) from None
    if follow:
        await follow_log(ask, offset, sys.stdout, lambda text: console.print(text, style="dim"))


def _asking(member: str, address: str, name: str | None) -> Ask:
    from cli.controller import ask_controller, controller_of
    from rpc.pb.controller_pb2 import LogsRequest

    where = [address]

    async def ask(offset: int, max_bytes: int) -> "LogsReply":
        # Emptied by a call that failed: the next one asks whoever leads then.
        at = where.pop() if where else await controller_of(name)
        request = LogsRequest(name=member, offset=offset, max_bytes=max_bytes)
        reply: LogsReply = await ask_controller(at, "Logs", request)
        where.append(at)
        return reply

    return ask


async def _whom_there_is(member: str, name: str | None, error: BatonError) -> str:
    from cli.controller import controller_of, state_now

    state = await state_now(await controller_of(name))
    there_is = ", ".join([*sorted(m.name for m in state.members), CONTROLLER])
    return f"no log of {member} ({error}); there is {there_is}"


async def write_tail(ask: Ask, num_lines: int, out: TextIO) -> int:
    """The last lines, or all; the byte after them."""
    if num_lines == ALL:
        return await write_from(ask, 0, out)
    max_bytes = FIRST_BYTES
    while True:
        reply = await ask(-max_bytes, max_bytes)
        is_whole = reply.next_offset <= max_bytes
        lines = reply.text.splitlines(keepends=True)
        # One more than asked for: the first one may have lost its beginning.
        if is_whole or len(lines) > num_lines or max_bytes >= MAX_BYTES:
            break
        max_bytes = min(MAX_BYTES, max_bytes * 4)
    out.write("".join(lines[-num_lines:] if num_lines else ()))
    out.flush()
    return int(reply.next_offset)


async def write_from(ask: Ask, offset: int, out: TextIO) -> int:
    """Piece by piece up to the end; the byte after it."""
    while True:
        reply = await ask(offset, MAX_BYTES)
        out.write(reply.text)
        out.flush()
        if not reply.text:
            return int(reply.next_offset)
        offset = int(reply.next_offset)


async def follow_log(ask: Ask, offset: int, out: TextIO, tell: Callable[[str], None]) -> None:
    """What is written from now on, without end; a controller that restarts is waited for."""
    is_told = False
    while True:
        try:
            offset = await write_from(ask, offset, out)
            is_told = False
        except BatonError as error:
            if not error.retryable:
                raise
            if not is_told:
                tell(f"controller restarting: {error}")
            is_told = True
        await asyncio.sleep(POLL_S)
