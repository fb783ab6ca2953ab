"""What every latency model of the planner can be asked, whatever it rests on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from core.parallel import ParallelLayout
from policy.step_times import StepTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The largest of each that a model was measured with; None: it is not known, or no limit."""

    prompt_tokens: int | None = None
    """Of one prompt."""
    step_tokens: int | None = None
    """Prompt tokens of one step."""
    batch: int | None = None
    """Answers in one step."""
    context_tokens: int | None = None
    """Of all answers in one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The largest of each that a simulation asks a model about; see `Reach`."""

    prompt_tokens: int = 0
    step_tokens: int = 0
    batch: int = 0
    context_tokens: int = 0


class LatencySource(Protocol):
    """Times and room of one model on one kind of hardware, by layout."""

    @property
    def name(self) -> str:
        """Of the model, the hardware and what the figures rest on; for people."""
        ...

    @property
    def num_layers(self) -> int:
        """That a layer-wise transfer can send one by one."""
        ...

    @property
    def kv_bytes_per_token(self) -> float:
        """Of K and V over all layers: what a handoff moves."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """Prompt and output tokens of one request together."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What is assumed, left out or wrong with the figures; one sentence each, for people."""
        ...

    def layouts(self) -> tuple[ParallelLayout, ...]:
        """Those that `times` and `capacity_tokens` both answer for."""
        ...

    def times(self, layout: ParallelLayout) -> StepTimes:
        """How long its steps take. Raises NoProfile."""
        ...

    def capacity_tokens(self, layout: ParallelLayout) -> int:
        """KV tokens that one instance holds. Raises NoProfile."""
        ...

    def reach(self, layout: ParallelLayout) -> Reach:
        """How far it was measured. Raises NoProfile."""
        ...


def extrapolations(reach: Reach, extent: Extent) -> Iterator[str]:
    """A sentence for each quantity that goes beyond what was measured."""
    names = {
        "prompt_tokens": "prompts of up to {} tokens, measured to {}",
        "step_tokens": "prefill steps of up to {} tokens, measured to {}",
        "batch": "up to {} answers in one step, measured to {}",
        "context_tokens": "up to {} context tokens in one step, measured to {}",
    }
    for name, sentence in names.items():
        asked, measured = getattr(extent, name), getattr(reach, name)
        if measured is not None and asked > measured:
            yield "extrapolated: " + sentence.format(f"{asked:,}", f"{measured:,}")


def is_extrapolated(reach: Reach, extent: Extent) -> bool:
    """Whether anything goes beyond what was measured."""
    return any(True for _ in extrapolations(reach, extent))


def named(layouts: tuple[ParallelLayout, ...]) -> tuple[str, ...]:
    """Layouts as a person reads them."""
    return tuple(str(layout) for layout in layouts)
