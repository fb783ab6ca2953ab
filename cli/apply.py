"""`baton apply`: new settings for a running cluster, checked, recorded, undone."""

import asyncio
import difflib
import getpass
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cli.errors import error_console, serve_extra_missing
from cli.running import routers_now
from core.errors import BatonError, ConfigError

if TYPE_CHECKING:
    from rpc.pb.settings_pb2 import ApplyReply, ApplyRequest, Edition, HistoryReply

TIMEOUT_S = 10.0
BEFORE_LAST = -1
"""`--rollback` without a version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOptions:
    """The command line."""

    file: Path | None
    rollback: int | None
    """A version; BEFORE_LAST: that before the newest; None: no."""
    history: bool
    dry_run: bool
    address: str | None
    json_output: bool


def apply_settings(options: ApplyOptions) -> None:
    """Do it; errors are a line per problem and exit status 1, 2 or 4."""
    console = error_console()
    if (options.file is not None) + (options.rollback is not None) + options.history != 1:
        raise typer.BadParameter("give one of FILE, --rollback and --history")
    try:
        asyncio.run(_apply(options))
    except ModuleNotFoundError as error:
        console.print(serve_extra_missing(error))
        raise typer.Exit(4) from None
    except OSError as error:
        console.print(f"cannot read {options.file}: {error.strerror}")
        raise typer.Exit(2) from None
    except ConfigError as error:
        for problem in error.problems:
            console.print(problem)
        raise typer.Exit(2) from None
    except BatonError as error:
        console.print(f"{error.reason}: {error}")
        raise typer.Exit(1) from None


async def _apply(options: ApplyOptions) -> None:
    history = await _history(options.address)
    if options.history:
        _show_history(history, json_output=options.json_output)
        return
    request = _request(options, history)
    if options.dry_run and not options.json_output:
        _show_difference(history, request)
    reply = await _put(options.address, request)
    document = {"version": reply.version, "dry_run": options.dry_run}
    if options.json_output:
        sys.stdout.write(json.dumps(document) + "\n")
    elif options.dry_run:
        Console().print(f"nothing put: version {reply.version} holds")
    else:
        Console().print(f"version {reply.version} put; routers take it over within seconds")


def _request(options: ApplyOptions, history: "HistoryReply") -> "ApplyRequest":
    from core.settings import parse_settings
    from rpc.pb import settings_pb2

    newest = history.editions[-1].version if history.editions else 0
    request = settings_pb2.ApplyRequest(
        author=getpass.getuser(), expected_version=newest, dry_run=options.dry_run
    )
    if options.file is not None:
        request.text = options.file.read_text(encoding="utf-8")
        # Here too: with the file's name, and before anybody is asked.
        parse_settings(request.text, str(options.file))
        return request
    request.restores = _version_to_restore(options.rollback, history)
    return request


def _version_to_restore(asked: int | None, history: "HistoryReply") -> int:
    if asked != BEFORE_LAST:
        return asked or 0
    if len(history.editions) < 2:
        raise NothingBefore("there are no earlier settings: see `baton apply --history`")
    return history.editions[-2].version


class NothingBefore(BatonError):
    """Nothing to go back to."""

    status = "FAILED_PRECONDITION"


def _show_history(history: "HistoryReply", *, json_output: bool) -> None:
    if json_output:
        rows = [_as_dict(edition) for edition in history.editions]
        document = {"applied_version": history.applied_version, "editions": rows}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    table = Table("version", "put at", "by", "repeats", "in force", box=box.SIMPLE)
    for edition in history.editions:
        is_applied = edition.version == history.applied_version
        table.add_row(
            str(edition.version),
            _moment(edition.at_s),
            edition.author,
            str(edition.restores or ""),
            "yes" if is_applied else "",
        )
    Console(highlight=False).print(table if history.editions else "no settings were put yet")


def _show_difference(history: "HistoryReply", request: "ApplyRequest") -> None:
    by_version = {edition.version: edition for edition in history.editions}
    old = history.editions[-1].text if history.editions else ""
    new = by_version[request.restores].text if request.restores in by_version else request.text
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), "in force", "to be put", lineterm=""
    )
    Console(highlight=False, markup=False).print("\n".join(lines) or "no difference")


def _as_dict(edition: "Edition") -> dict[str, object]:
    return {
        "version": edition.version,
        "at": _moment(edition.at_s),
        "author": edition.author,
        "restores": edition.restores,
        "text": edition.text,
    }


def _moment(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


async def _history(address: str | None) -> "HistoryReply":
    from rpc.pb import settings_pb2

    reply: HistoryReply = await _ask(address, "History", settings_pb2.HistoryRequest())
    return reply


async def _put(address: str | None, request: "ApplyRequest") -> "ApplyReply":
    reply: ApplyReply = await _ask(address, "Apply", request)
    return reply


async def _ask(address: str | None, method: str, request: Any) -> Any:  # noqa: ANN401 - two pairs
    import grpc.aio

    from rpc.dial import dial
    from rpc.options import Plane
    from rpc.pb import settings_pb2_grpc
    from rpc.status import error_from

    async with dial((await routers_now(address))[0], plane=Plane.CLIENT) as channel:
        try:
            return await getattr(settings_pb2_grpc.SettingsStub(channel), method)(
                request, timeout=TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise error_from(error) from None
