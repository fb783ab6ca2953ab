"""`baton plan`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cli import plan_options as o
from cli.errors import error_console
from cli.planning import (
    Given,
    Infeasible,
    any_cluster,
    ask_of,
    compile_once,
    ended_by_status,
    milestones,
    out_console,
    word,
)

if TYPE_CHECKING:
    from planner.ask.ask import Setup
    from planner.search.question import Affinity, Answer, Question
    from planner.search.results import Ranked
    from planner.search.sensitivity import Sensitivity
    from planner.search.trials import Sampling

QUICK_PRECISION, PRECISION = 0.1, 0.05
QUICK_CLUSTERS, CLUSTERS = 3, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """Where results go."""

    out: Path | None
    pictures: Path | None
    json_output: bool
    explain: bool
    sensitivity: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """How it is searched, as given."""

    rate: float | None
    goal: str
    spare: str
    affinity: str | None
    num_gpus: int | None
    max_usd_per_hour: float
    max_w: float
    seed: int
    threads: int | None
    quick: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A question and its answer."""

    setup: "Setup"
    question: "Question"
    answer: "Answer"
    what_if: "Sequence[Sensitivity]"
    chosen: "Ranked | None"


def plan(  # noqa: PLR0913 - each is an option of the command line
    model: o.Model,
    *,
    slo: o.SloOption = "",
    target: o.Target = 0.9,
    rate: o.Rate = None,
    goal: o.GoalOption = "gpus",
    spare: o.SpareOption = "none",
    gpu: o.Gpu = None,
    gpus: o.NumGpus = None,
    max_usd_per_hour: o.MaxUsdPerHour = None,
    max_watts: o.MaxWatts = None,
    owned: o.Owned = None,
    inventory: o.Inventory = None,
    gpus_per_host: o.GpusPerHost = None,
    hardware: o.HardwareFile = None,
    network_gbps: o.NetworkGbps = None,
    max_instance_gpus: o.MaxInstanceGpus = None,
    workload: o.WorkloadOption = "",
    prompt_tokens: o.PromptTokens = "",
    output_tokens: o.OutputTokens = "",
    arrivals: o.ArrivalsOption = "poisson",
    cached: o.CachedShare = 0.0,
    seed: o.Seed = 0,
    latency: o.LatencyOption = None,
    profile: o.ProfileFile = None,
    num_blocks: o.NumBlocks = 1024,
    weight_dtype: o.WeightDtype = None,
    kv_dtype: o.KvDtype = None,
    policy: o.Policy = "slo",
    max_batch: o.MaxBatch = 256,
    step_tokens: o.StepTokens = None,
    chunk_tokens: o.ChunkTokens = 512,
    cache_share: o.CacheShare = 0.0,
    layerwise_from: o.LayerwiseFrom = None,
    affinity: o.AffinityOption = None,
    quick: o.Quick = False,
    threads: o.Threads = None,
    sensitivity: o.SensitivityOption = False,
    out: o.Out = None,
    pictures: o.PicturesDir = None,
    json_output: o.Json = False,
    explain: o.Explain = False,
) -> None:
    """Find how many instances of which layout a model needs, for a load and its limits.

    Needs no GPU: clusters are simulated, with times that are computed from data sheets, published,
    or measured by `baton profile`. Two pools and colocated instances are compared with the same
    times.

    The most that eight H100 can serve, and a plan to try it with:

    `baton plan llama-3.1-8b --gpu h100-sxm --gpus 8 --workload azure-conv
    --slo ttft=0.5,tpot=0.05 --out plan.toml`

    Add `--rate 20` to ask for the fewest GPUs that serve 20 requests a second. Exit status: 0
    feasible, 2 bad input, 3 infeasible, 4 no profile. What each figure means: docs/planner.md.
    """
    console = error_console()
    with ended_by_status(console):
        from planner.ask.gpus import GpuAsk

        given = Given(
            model=model,
            weight_dtype=weight_dtype,
            kv_dtype=kv_dtype,
            gpus=GpuAsk(
                kinds=tuple(gpu or ()),
                inventories=tuple(inventory or ()),
                owned=tuple(owned or ()),
                num_gpus=gpus,
                gpus_per_host=gpus_per_host,
                files=tuple(hardware or ()),
                network_gbps=network_gbps,
                layerwise_from_tokens=layerwise_from,
            ),
            max_instance_gpus=max_instance_gpus,
            workload=workload,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            arrivals=arrivals,
            slo=slo,
            target=target,
            cached=cached,
            latency=latency,
            profile=profile,
            num_blocks=num_blocks,
            policy=policy,
            max_batch=max_batch,
            step_tokens=step_tokens,
            chunk_tokens=chunk_tokens,
            cache_share=cache_share,
        )
        searched = Searched(
            rate=rate,
            goal=goal,
            spare=spare,
            affinity=affinity,
            num_gpus=gpus,
            max_usd_per_hour=inf if max_usd_per_hour is None else max_usd_per_hour,
            max_w=inf if max_watts is None else max_watts,
            seed=seed,
            threads=threads,
            quick=quick,
        )
        shown = Shown(
            out=out,
            pictures=pictures,
            json_output=json_output,
            explain=explain,
            sensitivity=sensitivity,
        )
        _check_folders(shown)
        setup, question = _asked(given, searched)
        with milestones(console) as on_progress:
            planned = _planned(setup, question, shown, on_progress)
            written = _written(planned, shown, on_progress)
        _show(planned, shown, written)


def _asked(given: Given, searched: Searched) -> "tuple[Setup, Question]":
    """Raises ConfigError with every problem, NoProfile."""
    from planner.ask.ask import set_up
    from planner.ask.gathered import Gathered
    from planner.search.results import Goal
    from planner.search.spare import Spare

    gathered = Gathered()
    goal = gathered.of(lambda: word("--goal", searched.goal, Goal))
    spare = gathered.of(lambda: word("--spare", searched.spare, Spare))
    affinity = gathered.of(lambda: _affinity(searched.affinity))
    setup = gathered.of(lambda: set_up(ask_of(given)))
    if setup is not None and goal is not None and spare is not None and affinity is not None:
        question = _question(setup, searched)
        question = replace(question, goal=goal, spare=spare, affinity=affinity)
        for problem in question.problems():
            gathered.add(problem)
    gathered.check()
    assert setup is not None
    return setup, question


def _question(setup: "Setup", searched: Searched) -> "Question":
    from planner.search.candidates import Limits
    from planner.search.question import Question
    from planner.sim.simulate import simulate

    return Question(
        fleet=setup.fleet,
        workload=setup.workload,
        simulate=simulate,
        rate_per_s=searched.rate,
        max_gpus=searched.num_gpus,
        max_usd_per_hour=searched.max_usd_per_hour,
        max_w=searched.max_w,
        limits=Limits(),
        sampling=_sampling(quick=searched.quick, seed=searched.seed),
        precision=QUICK_PRECISION if searched.quick else PRECISION,
        num_simulated=QUICK_CLUSTERS if searched.quick else CLUSTERS,
        num_threads=searched.threads or _num_cores(),
    )


def _sampling(*, quick: bool, seed: int) -> "Sampling":
    from planner.search.trials import Sampling

    if quick:
        return Sampling(seed=seed, num_requests=400, first_runs=2, max_runs=4, half_width=0.03)
    return Sampling(seed=seed)


def _affinity(text: str | None) -> "Affinity":
    from core.errors import ConfigError
    from planner.search.question import Affinity

    known = {None: Affinity.HIGH | Affinity.LOW, "high": Affinity.HIGH, "low": Affinity.LOW}
    if text not in known:
        raise ConfigError((f"--affinity must be high or low, got {text!r}",))
    return known[text]


def _num_cores() -> int:
    import os

    # Of this process, where the system tells: a container may have fewer than the machine.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _planned(
    setup: "Setup", question: "Question", shown: Shown, on_progress: Callable[[str], None]
) -> Planned:
    from planner.report.choice import chosen
    from planner.search.plan import plan as search

    compile_once(any_cluster(setup.fleet), on_progress)
    answer = search(question, on_progress)
    winner = chosen(answer, question)
    what_if: tuple[Sensitivity, ...] = ()
    if shown.sensitivity and winner is not None:
        what_if = _what_if(question, winner, on_progress)
    return Planned(setup=setup, question=question, answer=answer, what_if=what_if, chosen=winner)


def _what_if(
    question: "Question", winner: "Ranked", on_progress: Callable[[str], None]
) -> "tuple[Sensitivity, ...]":
    from planner.search.parallel import Workers
    from planner.search.sensitivity import sensitivities
    from planner.search.setting import setting

    base = setting(
        question.fleet,
        question.workload,
        question.simulate,
        sampling=question.sampling,
        precision=question.precision,
    )
    workers = Workers(num_threads=question.num_threads, on_progress=on_progress)
    return sensitivities(base, winner, workers)


def _check_folders(shown: Shown) -> None:
    """Before a run of minutes, rather than after it."""
    from core.errors import ConfigError

    for option, path in (("--out", shown.out), ("--pictures", shown.pictures)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError((f"{option} {path}: there is no folder {path.parent}",))


def _written(planned: Planned, shown: Shown, on_progress: Callable[[str], None]) -> tuple[str, ...]:
    """Writes what is asked for; what to tell about it. Raises OSError."""
    lines: list[str] = []
    if shown.out is not None and planned.chosen is not None:
        on_progress("writing the plan")
        lines += _plan_files(planned, planned.chosen, shown.out)
    if shown.pictures is not None:
        from planner.report.album import save_pictures

        on_progress("drawing")
        paths = save_pictures(shown.pictures, planned.question, planned.answer, planned.chosen)
        lines.append(f"pictures: {', '.join(map(str, paths))}" if paths else "no pictures")
    return tuple(lines)


def _plan_files(planned: Planned, winner: "Ranked", out: Path) -> list[str]:
    from planner.report.files import PlanFiles, commands, write_plan
    from planner.report.load import checked_rate_per_s, load_of

    question, setup = planned.question, planned.setup
    files = PlanFiles(plan=out)
    rate_per_s = checked_rate_per_s(question.rate_per_s, winner.found.low_per_s)
    load = load_of(setup.workload, rate_per_s, question.sampling.seed)
    write_plan(files, setup, winner, load, question.simulate)
    serve, check = commands(files, setup, winner)
    return [
        f"plan: {files.plan}, settings: {files.config}",
        f"serve it:       {serve}",
        f"check it:       {check}",
        f"forecast of it: {files.forecast}, at {rate_per_s:.4g} requests/s",
    ]


def _show(planned: Planned, shown: Shown, written: tuple[str, ...]) -> None:
    """Raises Infeasible once everything is shown."""
    from planner.report.table import nearest

    if shown.json_output:
        _show_json(planned)
        for line in written:
            error_console().print(line)
    else:
        _show_tables(planned, shown, out_console(), written)
    if not planned.answer.is_feasible:
        lines = nearest(planned.answer, planned.question.rate_per_s)
        raise Infeasible("\n".join(lines))


def _show_json(planned: Planned) -> None:
    from planner.report.document import as_json, plan_document

    document = plan_document(planned.setup, planned.question, planned.answer, planned.what_if)
    sys.stdout.write(as_json(document) + "\n")


def _show_tables(
    planned: Planned, shown: Shown, console: Console, written: tuple[str, ...]
) -> None:
    from planner.report.choice import chosen_text
    from planner.report.explain import as_text, explained
    from planner.report.table import answer_tables, sensitivity_table

    for table in answer_tables(planned.answer):
        console.print(table)
    if planned.what_if and planned.chosen is not None:
        console.print(sensitivity_table(planned.what_if, planned.chosen.verdict))
    if shown.explain:
        sections = explained(planned.setup, planned.question, planned.answer)
        console.print(as_text(sections), soft_wrap=True)
    if planned.chosen is not None:
        console.print(
            chosen_text(planned.chosen, planned.answer, planned.question),
            soft_wrap=True,
        )
    for line in written:
        console.print(line, soft_wrap=True)
