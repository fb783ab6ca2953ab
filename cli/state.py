"""`baton state`: what a cluster's store must not lose, as a file, and back."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cli.errors import error_console, errors_told
from core.errors import BatonError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from registry.api import Registry

state = typer.Typer(
    no_args_is_help=True,
    help="Save what a cluster's store must not lose, and put it into a store again.\n\n"
    "That is its deployment, its settings with their history, its secret key and its last term."
    " Members and leases are not saved: those who live announce themselves.",
)

T = TypeVar("T")

DEFAULT_NAME = "baton"
PIPE = "-"

RegistryOption = Annotated[
    str | None,
    typer.Option(help="redis:// or rediss:// URL; default: of the cluster last started here."),
]
NameOption = Annotated[
    str | None,
    typer.Option(help=f"Cluster's name; default: {DEFAULT_NAME} with --registry, else the last."),
]


class FileUnusable(BatonError):
    """The file cannot be read or written."""

    status = "FAILED_PRECONDITION"


@state.command("export")
def export_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="To write; - is standard output.")],
    registry: RegistryOption = None,
    name: NameOption = None,
) -> None:
    """Save a cluster's state to FILE.

    FILE is a secret: it holds the key that signs between the cluster's processes. It is written
    with mode 0600, for its owner alone, in place of one that is there.
    """
    with errors_told(error_console()):
        from registry.state import export_state

        text = asyncio.run(_with_registry(registry, name, export_state))
        if file == PIPE:
            sys.stdout.write(text)
            return
        _write_secret(Path(file), text)
        error_console().print(f"state saved to {file}; it holds the cluster's key: keep it secret")


@state.command("import")
def import_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="To read; - is standard input.")],
    registry: RegistryOption = None,
    name: NameOption = None,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also replace what the store holds of the cluster.")
    ] = False,
) -> None:
    """Put a saved state into a store; all of it, or nothing where it has a problem.

    Processes that run take it over within seconds. With --force what the store holds is
    replaced, and the saved settings become one more edition; terms never go down.
    """
    with errors_told(error_console()):
        from registry.state import import_state

        text = _read(file)
        restored = asyncio.run(
            _with_registry(registry, name, lambda store: import_state(store, text, replace=force))
        )
        error_console().print(
            f"state restored: deployment {'yes' if restored.deployment else 'none'},"
            f" settings version {restored.settings_version or 'none'},"
            f" key {'yes' if restored.shared_key else 'none'},"
            f" last term {restored.last_leader.term if restored.last_leader else 'none'}"
        )


async def _with_registry(
    url: str | None, name: str | None, use: "Callable[[Registry], Awaitable[T]]"
) -> T:
    from registry.connect import connect

    if url is None:
        from cli.running import find_registry

        url, name = find_registry(name)
    registry = connect(url, name or DEFAULT_NAME)
    try:
        return await use(registry)
    finally:
        await registry.close()


def _write_secret(path: Path, text: str) -> None:
    """For its owner alone from the first byte, and whole or not at all."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise FileUnusable(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise FileUnusable(f"cannot write {path}: {error.strerror}") from None


def _read(name: str) -> str:
    from registry.state import MAX_STATE_BYTES

    # One byte more than allowed: a longer file must be seen to be too long.
    most = MAX_STATE_BYTES + 1
    try:
        if name == PIPE:
            data = sys.stdin.buffer.read(most)
        else:
            with Path(name).open("rb") as file:
                data = file.read(most)
    except OSError as error:
        raise FileUnusable(f"cannot read {name}: {error.strerror}") from None
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FileUnusable(f"{name} is not UTF-8 text") from None
