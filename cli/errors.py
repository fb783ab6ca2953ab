"""How commands end that cannot do what they are asked: one line, and an exit status."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from core.errors import BatonError


def error_console() -> Console:
    """Standard error, word for word: brackets are no markup, long lines stay whole."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def serve_extra_missing(error: ModuleNotFoundError) -> str:
    """What to do when the base installation meets a command that serves."""
    return (
        f"{error.name} is not installed: serving needs more than the planner. Run\n"
        "  pip install -e '.[serve]'\nthen `baton fetch` for the default model."
    )


@contextmanager
def errors_told(console: Console) -> Iterator[None]:
    """Around a command that talks to servers: exit status 4 for a missing package, else 1."""
    try:
        yield
    except ModuleNotFoundError as error:
        console.print(serve_extra_missing(error))
        raise typer.Exit(4) from None
    except BatonError as error:
        console.print(f"{error.reason}: {error}")
        raise typer.Exit(1) from None
