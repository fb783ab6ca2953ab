"""Workloads by name or by file: what people have published, usable offline, and what they have."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from core.slo import Slo
from planner.workload.arrivals import Arrivals, Gaps, Replay
from planner.workload.classes import RequestClass
from planner.workload.columns import load_pairs, load_trace
from planner.workload.lengths import Lengths, Pairs, Recorded
from planner.workload.trace import has_moments
from planner.workload.workload import Workload

_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A file that comes with Baton; licences are beside it."""

    file: str
    about: str


PRESETS: Mapping[str, Preset] = {
    "sharegpt": Preset(
        file="sharegpt_prefix_opt_lengths.csv.gz",
        about="chat: 12,088 conversations of ShareGPT, filtered as by DistServe; OPT's tokenizer",
    ),
    "humaneval": Preset(
        file="humaneval_opt_lengths.csv",
        about="code completion: HumanEval's 164 problems; OPT's tokenizer",
    ),
    "azure-code": Preset(
        file="AzureLLMInferenceTrace_code.csv.gz",
        about="coding assistant: an hour of Azure's production, November 2023",
    ),
    "azure-conv": Preset(
        file="AzureLLMInferenceTrace_conv.csv.gz",
        about="conversation: an hour of Azure's production, November 2023",
    ),
}


def load_workload(
    source: str, *, slo: Slo | None = None, target: float = 0.9, arrivals: Arrivals | None = None
) -> Workload:
    """One of PRESETS, or a file. A trace is replayed, unless other arrivals are given: then its
    requests come in their order at those moments. Of a file of lengths alone pairs are drawn, by
    default at Poisson's moments. Raises ConfigError."""
    if source in PRESETS:
        path = _DATA / PRESETS[source].file
    else:
        path = Path(source)
        if not path.exists():
            raise ConfigError(
                (f"workload {source!r} is neither a file nor one of {', '.join(PRESETS)}",)
            )
    lengths, own = _parts(path)
    return Workload(
        name=source if source in PRESETS else path.name,
        arrivals=own if arrivals is None else arrivals,
        classes=(RequestClass(lengths=lengths, slo=slo or Slo(), target=target),),
    )


def load_lengths(source: str) -> Lengths:
    """Of one of PRESETS or of a file, as `load_workload` has them; for a class of a mix."""
    return load_workload(source).classes[0].lengths


def _parts(path: Path) -> tuple[Lengths, Arrivals]:
    if has_moments(path):
        trace = load_trace(path)
        return Recorded(trace=trace), Replay(trace=trace)
    prompts, outputs = load_pairs(path)
    return Pairs(num_prompt_tokens=prompts, num_output_tokens=outputs), Gaps()
