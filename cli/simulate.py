"""`baton simulate`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cli import plan_options as o
from cli.errors import error_console
from cli.planning import Given, ask_of, compile_once, ended_by_status, milestones, out_console

if TYPE_CHECKING:
    from planner.ask.ask import Setup
    from planner.report.measures import Measures
    from planner.search.results import Candidate, Pool
    from planner.sim.spec import Cluster, Scheduling


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A cluster, as given."""

    plan: Path | None
    pools: dict[str, Sequence[str]]
    """By role."""
    scheduling: str
    lose: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What is played."""

    rate: float | None
    num_requests: int
    num_runs: int
    seed: int


def simulate(  # noqa: PLR0913 - each is an option of the command line
    model: o.Model,
    *,
    plan: o.PlanFile = None,
    prefill: o.Prefill = None,
    decode: o.Decode = None,
    mixed: o.Mixed = None,
    scheduling: o.SchedulingOption = "chunked",
    lose: o.Lose = None,
    slo: o.SloOption = "",
    target: o.Target = 0.9,
    gpu: o.Gpu = None,
    inventory: o.Inventory = None,
    gpus_per_host: o.GpusPerHost = None,
    hardware: o.HardwareFile = None,
    network_gbps: o.NetworkGbps = None,
    workload: o.WorkloadOption = "",
    prompt_tokens: o.PromptTokens = "",
    output_tokens: o.OutputTokens = "",
    arrivals: o.ArrivalsOption = "poisson",
    rate: o.SimulatedRate = None,
    num_requests: o.NumRequests = 2000,
    runs: o.NumRuns = 5,
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
    json_output: o.Json = False,
) -> None:
    """Play a load through one given cluster: latencies, attainment, load, watts and cost.

    Three prefill instances of two GPUs each, two decode instances of one, ten requests a second;
    the first decode instance is lost after a minute and back after two:

    `baton simulate llama-3.1-8b --gpu h100-sxm --prefill 2x1:3 --decode 1x1:2 --rate 10
    --workload azure-conv --slo ttft=0.5,tpot=0.05 --lose 3@60-120`

    With losses every request counts; else those between a warm-up and the last ones do. What each
    figure means: docs/planner.md.
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
                gpus_per_host=gpus_per_host,
                files=tuple(hardware or ()),
                network_gbps=network_gbps,
                layerwise_from_tokens=layerwise_from,
            ),
            max_instance_gpus=None,
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
        described = Described(
            plan=plan,
            pools={"prefill": prefill or (), "decode": decode or (), "mixed": mixed or ()},
            scheduling=scheduling,
            lose=lose or (),
        )
        played = Played(rate=rate, num_requests=num_requests, num_runs=runs, seed=seed)
        setup, candidate, cluster = _asked(given, described, played)
        with milestones(console) as on_progress:
            compile_once(cluster, on_progress)
            found = _measured(setup, cluster, played, on_progress)
        _show(found, candidate, json_output=json_output)


def _asked(
    given: Given, described: Described, played: Played
) -> "tuple[Setup, Candidate, Cluster]":
    """Raises ConfigError with every problem, NoProfile."""
    from planner.ask.ask import set_up
    from planner.ask.gathered import Gathered
    from planner.search.fleet import cluster_of
    from planner.search.results import Candidate

    setup = set_up(ask_of(given))
    gathered = Gathered()
    if _rate(setup, played) is None:
        gathered.add("--rate is needed: requests per second; only a trace has one of its own")
    pools = gathered.of(lambda: _pools(described, setup))
    gathered.check()
    assert pools is not None
    candidate = Candidate(pools=pools)
    cluster = cluster_of(setup.fleet, candidate)
    return setup, candidate, _with_losses(cluster, described).checked()


def _with_losses(cluster: "Cluster", described: Described) -> "Cluster":
    from planner.ask.pools import parse_losses

    changes = parse_losses(described.lose, len(cluster.instances))
    return replace(cluster, changes=changes)


def _pools(described: Described, setup: "Setup") -> "tuple[Pool, ...]":
    from core.errors import ConfigError
    from core.member import Role
    from core.plan import load_plan
    from planner.ask.gathered import Gathered
    from planner.ask.pools import parse_pool, pools_of_plan

    texts = [(Role(role), text) for role, given in described.pools.items() for text in given]
    if (described.plan is None) == (not texts):
        raise ConfigError(("a cluster is needed: --plan, or --prefill and --decode, or --mixed",))
    scheduling = _scheduling(described.scheduling)
    if described.plan is not None:
        return pools_of_plan(load_plan(described.plan), setup.fleet, scheduling)
    gathered = Gathered()
    pools = [
        gathered.of(partial(parse_pool, role, text, setup.fleet, scheduling))
        for role, text in texts
    ]
    gathered.check()
    return tuple(pool for pool in pools if pool is not None)


def _scheduling(text: str) -> "Scheduling":
    from core.errors import ConfigError
    from planner.sim.spec import Scheduling

    known = {each.name.lower(): each for each in Scheduling}
    if text not in known:
        raise ConfigError((f"--scheduling must be of {', '.join(known)}, got {text!r}",))
    return known[text]


def _rate(setup: "Setup", played: Played) -> float | None:
    return setup.workload.natural_rate_per_s if played.rate is None else played.rate


def _measured(
    setup: "Setup", cluster: "Cluster", played: Played, on_progress: Callable[[str], None]
) -> "Measures":
    from planner.report.load import ANY_GROWTH, WHOLE_RUN
    from planner.report.measures import measures
    from planner.search.trials import Sampling
    from planner.sim.simulate import simulate as play

    rate_per_s = _rate(setup, played)
    assert rate_per_s is not None
    # What is the same for every seed is told by one run.
    num_runs = played.num_runs if setup.workload.is_random else 1
    outcomes = []
    for number in range(num_runs):
        on_progress(f"run {number + 1} of {num_runs}")
        requests = setup.workload.traffic(rate_per_s, played.num_requests, played.seed + number)
        outcomes.append(play(cluster, requests))
    sampling = Sampling()
    if cluster.changes:
        return measures(outcomes, setup.workload.classes, WHOLE_RUN, ANY_GROWTH)
    return measures(outcomes, setup.workload.classes, sampling.window, sampling.growth)


def _show(found: "Measures", candidate: "Candidate", *, json_output: bool) -> None:
    from planner.report.document import as_json, candidate_document, measures_document
    from planner.report.measures_table import measures_table

    if json_output:
        document = {"schema": 1, **candidate_document(candidate), **measures_document(found)}
        sys.stdout.write(as_json(document) + "\n")
    else:
        out_console().print(measures_table(found, f"{candidate}, {candidate.num_gpus} GPUs"))
