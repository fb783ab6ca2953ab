"""What an answer rests on, in sentences: the search's own reasons, models, work, assumptions."""

from collections.abc import Iterator

from planner.ask.ask import Setup
from planner.ask.gpus import USD_PER_KWH
from planner.report.choice import chosen
from planner.search.fleet import Fleet
from planner.search.question import Answer, Question
from planner.workload.arrivals import Gaps
from planner.workload.workload import Workload

Section = tuple[str, tuple[str, ...]]
"""Heading, and its sentences."""


def explained(setup: Setup, question: Question, answer: Answer) -> tuple[Section, ...]:
    """In the order in which a reader asks."""
    return (
        ("why", answer.reasons),
        ("chosen", tuple(_chosen(question, answer))),
        ("latency models", tuple(_latencies(setup.fleet))),
        ("extrapolated", tuple(_extrapolated(answer))),
        ("work", tuple(_work(setup.workload))),
        ("assumed", tuple(assumptions(setup.fleet))),
        ("simulated", (f"{answer.num_runs:,} runs, {answer.num_requests:,} requests",)),
    )


def as_text(sections: tuple[Section, ...]) -> str:
    """A heading, and a line for each sentence; empty sections are left out."""
    parts = []
    for heading, sentences in sections:
        if sentences:
            parts.append("\n".join((f"{heading}:", *(f"  - {each}" for each in sentences))))
    return "\n".join(parts)


def _chosen(question: Question, answer: Answer) -> Iterator[str]:
    winner = chosen(answer, question)
    if winner is None:
        yield "nothing: no cluster attains what is asked"
        return
    yield f"{winner.candidate}, best by {question.goal.value}"
    if winner.candidate.is_colocated:
        yield (
            "colocated wins with the same latency model: two pools cost more for this work, these "
            "limits and these GPUs"
        )
    if answer.colocated is None:
        yield "no colocated cluster keeps the limits at any rate, with the same latency model"


def _latencies(fleet: Fleet) -> Iterator[str]:
    for hardware in fleet.hardware:
        source = hardware.source
        layouts = ", ".join(map(str, source.layouts()))
        yield f"{source.name}; layouts {layouts}"
        yield from source.notes


def _extrapolated(answer: Answer) -> Iterator[str]:
    rivals = [*answer.ranked[:1], *([answer.colocated] if answer.colocated else [])]
    for each in rivals:
        yield from (f"{each.candidate}: {note}" for note in each.notes)


def _work(workload: Workload) -> Iterator[str]:
    yield from (line.strip() for line in workload.describe().splitlines())
    if isinstance(workload.arrivals, Gaps) and workload.arrivals.process == "poisson":
        yield "real arrivals come in bursts: --arrivals trace, or gamma:SHAPE, shows what they cost"
    if not workload.is_random:
        yield "every run is the same: intervals say nothing of other days"


def assumptions(fleet: Fleet) -> Iterator[str]:
    """Of the simulator and its rules, whatever the latency model."""
    rules, network = fleet.rules, fleet.network
    yield (
        f"steps of up to {rules.step_tokens:,} prompt tokens and {rules.max_batch} answers; "
        f"chunked instances {rules.chunk_tokens} tokens a step; placement {rules.placement}"
    )
    gbps = network.host_bytes_per_s * 8 / 1e9
    yield (
        f"each host sends {gbps:,.4g} Gbit/s, shared by all that leaves it"
        if gbps != float("inf")
        else "KV moves in no time: no network was named"
    )
    yield "watts are the GPUs' own: hosts, network and cooling come on top"
    unpriced = [each.name for each in fleet.hardware if not each.price_usd_per_gpu_hour]
    if unpriced:
        yield f"no price: {', '.join(unpriced)}"
    if any(each.name.endswith("owned") for each in fleet.hardware):
        yield f"owned GPUs cost the power they may draw, {USD_PER_KWH:g} USD per kWh"
    yield "answers end when their recorded length is reached; clients never give up"
