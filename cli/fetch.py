"""`baton fetch`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import Progress

from cli.errors import error_console, serve_extra_missing
from core.errors import BatonError


def fetch_model(model: str) -> None:
    """Fetch or convert a model, the default one if none is named; says where it is."""
    console = error_console()
    try:
        from deploy.hub import PREFIX
        from deploy.model_source import resolve_model
    except ModuleNotFoundError as error:
        console.print(serve_extra_missing(error))
        raise typer.Exit(4) from None
    name = model or "default model"
    # The hub's library draws bars of its own.
    shown = step_lines if model.startswith(PREFIX) else _bar
    try:
        with shown(console) as on_progress:
            path = resolve_model(model, on_progress)
    except BatonError as error:
        console.print(str(error))
        raise typer.Exit(1) from None
    console.print(f"{name}: {path}")


@contextmanager
def step_lines(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A line for each step that begins."""
    told: list[str] = []

    def tell(step: str, _: float) -> None:
        if step not in told:
            told.append(step)
            console.print(step, style="dim")

    yield tell


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, float], None]]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("model", total=1.0)
        yield lambda step, done: progress.update(task, description=step, completed=done)
