"""Which work is meant: requests of a file, of a preset, or of lengths that are given."""

from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import ConfigError
from core.slo import Slo
from planner.ask.gathered import Gathered
from planner.ask.mix import load_mix
from planner.workload.arrivals import Arrivals, Gaps, Pieces, parse_arrivals
from planner.workload.classes import RequestClass
from planner.workload.distributions import parse_lengths
from planner.workload.lengths import Independent
from planner.workload.presets import PRESETS, load_workload
from planner.workload.workload import Workload

TRACE = "trace"
"""Arrivals, and the order of requests, as they were recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkAsk:
    """What the question says of requests."""

    workload: str = ""
    """One of PRESETS, a file, or a mix of classes in TOML (`planner.ask.mix`)."""
    prompt_tokens: str = ""
    output_tokens: str = ""
    """Both: lengths that have nothing to do with one another, instead of a workload."""
    arrivals: str = "poisson"
    slo: Slo
    target: float = 0.9
    cached_share: float = 0.0
    """Of each prompt that every instance is taken to hold."""


def workload_of(ask: WorkAsk) -> Workload:
    """Raises ConfigError with every problem."""
    gathered = Gathered()
    if ask.slo == Slo() and not _is_mix(ask):
        gathered.add("--slo is needed: limits in seconds, for example ttft=0.5,tpot=0.05")
    arrivals = gathered.of(lambda: _arrivals(ask.arrivals))
    made = gathered.of(lambda: _made(ask, arrivals))
    if made is not None:
        for problem in made.problems():
            gathered.add(problem)
    gathered.check()
    assert made is not None
    return made


def _arrivals(text: str) -> Gaps | Pieces | None:
    """None: as recorded."""
    return None if text == TRACE else parse_arrivals("--arrivals", text)


def _is_mix(ask: WorkAsk) -> bool:
    return ask.workload.endswith(".toml")


def _made(ask: WorkAsk, arrivals: Gaps | Pieces | None) -> Workload:
    if _is_mix(ask):
        if arrivals is None:
            raise ConfigError(("--arrivals trace: a mix of classes has no moments of its own",))
        if ask.slo != Slo() or ask.cached_share or ask.prompt_tokens or ask.output_tokens:
            raise ConfigError(("a mix says limits, lengths and shares of each class itself",))
        return load_mix(Path(ask.workload), arrivals)
    given = [bool(ask.workload), bool(ask.prompt_tokens), bool(ask.output_tokens)]
    if given == [True, False, False]:
        made = _loaded(ask, arrivals)
    elif given == [False, True, True]:
        made = _of_lengths(ask, arrivals)
    else:
        raise ConfigError(
            (
                "--workload is needed, or --prompt-tokens and --output-tokens; --workload is a "
                f"file or one of {', '.join(PRESETS)}",
            )
        )
    return replace(
        made, classes=tuple(replace(each, cached_share=ask.cached_share) for each in made.classes)
    )


def _loaded(ask: WorkAsk, arrivals: Arrivals | None) -> Workload:
    loaded = load_workload(ask.workload, slo=ask.slo, target=ask.target)
    if arrivals is not None:
        return loaded.resampled(arrivals)
    if loaded.natural_rate_per_s is None:
        raise ConfigError((f"--arrivals trace: {ask.workload} has lengths and no moments",))
    return loaded


def _of_lengths(ask: WorkAsk, arrivals: Arrivals | None) -> Workload:
    gathered = Gathered()
    prompt = gathered.of(lambda: parse_lengths("--prompt-tokens", ask.prompt_tokens))
    output = gathered.of(lambda: parse_lengths("--output-tokens", ask.output_tokens))
    if arrivals is None:
        gathered.add("--arrivals trace needs a --workload with moments")
    gathered.check()
    assert prompt is not None
    assert output is not None
    assert arrivals is not None
    lengths = Independent(prompt=prompt, output=output)
    return Workload(
        name=f"prompts {prompt}, outputs {output}",
        arrivals=arrivals,
        classes=(RequestClass(lengths=lengths, slo=ask.slo, target=ask.target),),
    )
