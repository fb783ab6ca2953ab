"""`baton profile`: how fast one model is on this machine."""

import shlex
import signal
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import Progress

from cli.errors import error_console, serve_extra_missing
from cli.profile_tables import show_agreement, show_profile
from core.clock import MonotonicClock
from core.config import Config, load
from core.errors import BatonError, ModelError
from core.profile import load as load_profile
from core.profile_compare import compare

if TYPE_CHECKING:
    from core.profile import Profile
    from deploy.profile_plan import OnProgress

DEFAULT_BUDGET_S = 300.0
QUICK_BUDGET_S = 54.0
"""With the interpreter and its imports, a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """The command line."""

    model: Path | None
    out: Path
    budget_s: float | None
    quick: bool
    json_output: bool
    compare: Path | None
    config: Path | None


def run_profile(options: ProfileOptions) -> None:
    """Measure, or compare; errors are one message and exit status 1, 2, 4 or 130."""
    console = error_console()
    try:
        holds = _compare(options) if options.compare else _measure(options, console)
    except ModuleNotFoundError as error:
        console.print(serve_extra_missing(error))
        raise typer.Exit(4) from None
    except OSError as error:
        console.print(f"{error.filename}: {error.strerror}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.print("interrupted; run it again to go on")
        raise typer.Exit(128 + signal.SIGINT) from None
    except BatonError as error:
        console.print(str(error))
        raise typer.Exit(2 if error.status == "INVALID_ARGUMENT" else 1) from None
    if not holds:
        raise typer.Exit(1)


def _measure(options: ProfileOptions, console: Console) -> bool:
    from deploy.interrupt import terminate_like_ctrl_c

    terminate_like_ctrl_c()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("loading the model", total=1.0)
        made = _profile(
            options, lambda step, done: progress.update(task, description=step, completed=done)
        )
    if options.json_output:
        sys.stdout.write(made.to_json())
    else:
        show_profile(made, Console(highlight=False))
        console.print(f"profile: {options.out}")
    return True


def _profile(options: ProfileOptions, on_progress: "OnProgress") -> "Profile":
    from deploy.profile_load import load_bench, neighbours_of
    from deploy.profile_plan import ProfileJob
    from deploy.profiling import profile

    clock = MonotonicClock()
    budget_s = options.budget_s or (QUICK_BUDGET_S if options.quick else DEFAULT_BUDGET_S)
    # Loading counts: whoever gives a budget waits for the command, not for its parts.
    deadline_s = clock.now_s() + budget_s
    engine = (load(options.config) if options.config else Config()).engine
    bench, subject = load_bench(_model_dir(options.model), engine, clock)
    job = ProfileJob(
        out=options.out,
        deadline_s=deadline_s,
        quick=options.quick,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["baton", *sys.argv[1:]]),
    )
    return profile(bench, subject, job, neighbours_of(engine), on_progress)


def _compare(options: ProfileOptions) -> bool:
    assert options.compare is not None
    agreement = compare(load_profile(options.out), load_profile(options.compare))
    show_agreement(agreement, Console(highlight=False))
    return agreement.holds


def _model_dir(option: Path | None) -> Path:
    from deploy.default_model import default_model_dir

    if option is not None:
        return option.expanduser().absolute()
    folder = default_model_dir()
    if not folder.is_dir():
        raise ModelError(
            "no model: `baton fetch` fetches the default one, or name one with --model"
        )
    return folder
