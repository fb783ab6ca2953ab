"""`baton fetch`."""

import typer
from rich.console import Console
from rich.progress import Progress

from core.errors import BatonError


def fetch_model() -> None:
    """Fetch and convert the default model with a progress bar; says where it is."""
    console = error_console()
    try:
        from deploy.default_model import fetch_default_model
    except ModuleNotFoundError as error:
        console.print(serve_extra_missing(error))
        raise typer.Exit(4) from None
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("default model", total=1.0)
        try:
            path = fetch_default_model(
                on_progress=lambda step, done: progress.update(
                    task, description=step, completed=done
                )
            )
        except BatonError as error:
            console.print(str(error))
            raise typer.Exit(1) from None
    console.print(f"default model: {path}")


def error_console() -> Console:
    """Standard error, word for word: brackets are no markup, long lines stay whole."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def serve_extra_missing(error: ModuleNotFoundError) -> str:
    """What to do when the base installation meets a command that serves."""
    return (
        f"{error.name} is not installed: serving needs more than the planner. Run\n"
        "  pip install -e '.[serve]'\nthen `baton fetch` for the default model."
    )
