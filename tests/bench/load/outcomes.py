"""Outcomes made by hand, for what is computed from them."""

from array import array

from bench.load.measures import Cpu
from bench.load.outcome import Answer, Outcome, Usage

IDLE = Cpu(cpu_s=0.1, wall_s=10.0)


def outcome(
    at_s: float,
    ttft_s: float = 0.5,
    gap_s: float = 0.1,
    num_tokens: int = 5,
    *,
    error: str = "",
    late_s: float = 0.0,
    chunk_tokens: int = 1,
    is_told: bool = True,
    usage: Usage | None = None,
    max_tokens: int | None = None,
) -> Outcome:
    """An answer in even chunks; with an error, what came before it."""
    times_s = [at_s + ttft_s + i * gap_s for i in range(num_tokens)]
    answer = Answer(
        times_s=array("d", times_s),
        sizes=array("L", [chunk_tokens] * num_tokens),
        is_told=is_told,
        usage=usage,
    )
    return Outcome(
        at_s=at_s,
        late_s=late_s,
        ended_at_s=times_s[-1] if times_s else at_s,
        num_prompt_tokens=100,
        max_tokens=num_tokens * chunk_tokens if max_tokens is None else max_tokens,
        answer=answer,
        error=error,
        detail=f"why {at_s:g}" if error else "",
    )
