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
    except (BatonError, ExceptionGroup) as error:
        told = typed(error)
        console.print(f"{told.reason}: {told}")
        raise typer.Exit(1) from None


def typed(error: BatonError | ExceptionGroup[Exception]) -> BatonError:
    """The first typed error of a group; where it holds anything else, that is raised.

    A reader that leaves (`| head`) is told by an OSError, which typer knows how to end with; it
    would not find one in a group.
    """
    if isinstance(error, BatonError):
        return error
    _, others = error.split(BatonError)
    if others is not None:
        raise _only(others)
    first = error.exceptions[0]
    assert isinstance(first, BatonError | ExceptionGroup)
    return typed(first)


def _only(group: Exception) -> Exception:
    """What it holds, when that is one; else all."""
    while isinstance(group, ExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group
