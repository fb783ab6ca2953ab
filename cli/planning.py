"""What `baton plan` and `baton simulate` share: how they are asked, and how they end."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer
from rich.console import Console

from cli.bench import progress_line
from core.errors import BatonError, ConfigError, NoProfile
from core.slo import Slo

if TYPE_CHECKING:
    from planner.ask.ask import Ask
    from planner.ask.gpus import GpuAsk
    from planner.search.fleet import Fleet, Rules
    from planner.sim.spec import Cluster

BAD_INPUT, INFEASIBLE, NO_PROFILE = 2, 3, 4
"""Exit statuses."""
WIDTH = 140
"""Of tables where no terminal says how wide they may be."""
STEP_TOKENS = 2048
"""Prompt tokens of a step, where neither the user nor a profile says."""

COUNTED = re.compile(r"(?P<done>\d+) of (?P<all>\d+)$")

Word = TypeVar("Word", bound=StrEnum)


class Infeasible(BatonError):
    """Nothing attains what is asked; the message names the nearest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Options of both commands, as they were given."""

    model: str
    weight_dtype: str | None
    kv_dtype: str | None
    gpus: "GpuAsk"
    max_instance_gpus: int | None
    workload: str
    prompt_tokens: str
    output_tokens: str
    arrivals: str
    slo: str
    target: float
    cached: float
    latency: str | None
    profile: Path | None
    num_blocks: int
    policy: str
    max_batch: int
    step_tokens: int | None
    chunk_tokens: int
    cache_share: float


@contextmanager
def ended_by_status(console: Console) -> Iterator[None]:
    """Errors are told without a traceback, each with its exit status."""
    try:
        yield
    except Infeasible as error:
        console.print(str(error))
        raise typer.Exit(INFEASIBLE) from None
    except NoProfile as error:
        console.print(_no_profile(error))
        raise typer.Exit(NO_PROFILE) from None
    except ConfigError as error:
        console.print(str(error))
        raise typer.Exit(BAD_INPUT) from None
    except OSError as error:
        console.print(f"{error.filename}: {error.strerror}")
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        console.print("interrupted")
        raise typer.Exit(128 + signal.SIGINT) from None


def _no_profile(error: NoProfile) -> str:
    there_is = ", ".join(error.available) or "nothing"
    return f"no profile of {error.wanted}\nthere is: {there_is}\nwhat to do: {error.remedy}"


def ask_of(given: Given) -> "Ask":
    """Raises ConfigError with every problem that the words themselves have."""
    from bench.load.parsing import parse_slo
    from planner.ask.ask import Ask
    from planner.ask.gathered import Gathered
    from planner.ask.latency import Latency, Times
    from planner.ask.work import WorkAsk

    gathered = Gathered()
    slo = gathered.of(lambda: parse_slo(given.slo)) or Slo()
    default = Latency.ROOFLINE if given.profile is None else Latency.MEASURED
    latency = gathered.of(lambda: word("--latency", given.latency or default, Latency))
    gathered.check()
    assert latency is not None
    return Ask(
        model=given.model,
        weight_dtype=given.weight_dtype,
        kv_dtype=given.kv_dtype,
        times=Times(
            latency=latency,
            profile=given.profile,
            num_blocks=given.num_blocks,
            max_gpus=given.max_instance_gpus,
        ),
        gpus=given.gpus,
        work=WorkAsk(
            workload=given.workload,
            prompt_tokens=given.prompt_tokens,
            output_tokens=given.output_tokens,
            arrivals=given.arrivals,
            slo=slo,
            target=given.target,
            cached_share=given.cached,
        ),
        rules=rules_of(given),
        saturates=given.step_tokens is None,
    )


def rules_of(given: Given) -> "Rules":
    """What instances and the router are set to."""
    from planner.search.fleet import Rules

    return Rules(
        max_batch=given.max_batch,
        step_tokens=STEP_TOKENS if given.step_tokens is None else given.step_tokens,
        chunk_tokens=given.chunk_tokens,
        cache_tokens_share=given.cache_share,
        placement=given.policy,
        # Splitwise's scheduler finds an answer's place once its prompt is read.
        pairs_at_arrival=given.policy != "mixed_pool",
    )


def word(option: str, text: str, known: type[Word]) -> Word:
    """One of an enumeration. Raises ConfigError."""
    if text not in list(known):
        raise ConfigError((f"{option} must be of {', '.join(known)}, got {text!r}",))
    return known(text)


def out_console() -> Console:
    """Standard output, wide where nobody looks."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


@contextmanager
def milestones(console: Console) -> Iterator[Callable[[str], None]]:
    """One line that changes; where that cannot be, only what has come to its end."""
    with progress_line(console) as on_progress:
        yield on_progress if console.is_terminal else lambda text: _if_done(text, on_progress)


def _if_done(text: str, on_progress: Callable[[str], None]) -> None:
    counted = COUNTED.search(text)
    if counted is None or counted["done"] == counted["all"]:
        on_progress(text)


def compile_once(cluster: "Cluster", on_progress: Callable[[str], None]) -> None:
    """Before anything is timed or runs in threads; says so where it takes long."""
    from planner.report.warm import COMPILING, is_compiled, warm_up

    if not is_compiled(cluster):
        on_progress(COMPILING)
    warm_up(cluster)


def any_cluster(fleet: "Fleet") -> "Cluster":
    """The smallest of a fleet, to compile the simulator with its rules."""
    from core.member import Role
    from planner.search.fleet import cluster_of
    from planner.search.results import Candidate, Pool

    hardware = next(each for each in fleet.hardware if each.source.layouts())
    pool = Pool(role=Role.MIXED, layout=hardware.source.layouts()[0], num=1, hardware=hardware.name)
    return cluster_of(fleet, Candidate(pools=(pool,)))
