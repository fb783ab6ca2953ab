"""What became of one request, by the clock of whoever asked; the latencies are core.slo's."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from core import slo


@dataclass(frozen=True, slots=True)
class Tokens:
    """Output tokens that arrived together."""

    num_tokens: int
    """At least 1."""
    is_told: bool = True
    """False: the server did not say how many they are, and one is assumed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server counted, told at the end."""

    num_prompt_tokens: int
    num_output_tokens: int


Event = Tokens | Usage


@dataclass(slots=True)
class Answer:
    """As it comes; all moments in seconds from the start of the load.

    Arrays, since a long run has millions of these moments.
    """

    times_s: "array[float]" = field(default_factory=lambda: array("d"))
    """Of each arrival of tokens."""
    sizes: "array[int]" = field(default_factory=lambda: array("L"))
    """How many came then."""
    is_told: bool = True
    """Whether the server said each size."""
    usage: Usage | None = None

    def take(self, event: Event, at_s: float) -> None:
        """Note what has just arrived."""
        if isinstance(event, Usage):
            self.usage = event
            return
        self.times_s.append(at_s)
        self.sizes.append(event.num_tokens)
        self.is_told &= event.is_told

    @property
    def num_output_tokens(self) -> int:
        """By the server's count where it gave one, else by ours."""
        return sum(self.sizes) if self.usage is None else self.usage.num_output_tokens

    def moments(self, due_at_s: float) -> slo.Moments | None:
        """For latencies from the moment the request was due; None before the first token."""
        if not self.times_s:
            return None
        return slo.Moments(
            arrived_at_s=due_at_s,
            first_token_at_s=self.times_s[0],
            second_token_at_s=self._second_token_at_s(),
            last_token_at_s=self.times_s[-1],
            num_output_tokens=self.num_output_tokens,
        )

    def _second_token_at_s(self) -> float | None:
        if self.sizes[0] > 1:
            return self.times_s[0]
        return self.times_s[1] if len(self.times_s) > 1 else None

    def pauses_s(self) -> Iterator[float]:
        """From each arrival of tokens to the next, as a reader sees them: the ITLs.

        Tokens that come together have one pause before them, whole, and none between them. To
        spread it over them (pause / tokens each) would hide the longest pauses; to count zeros
        between them would make the median one. TPOT is the mean per token.
        """
        return (after - before for before, after in pairwise(self.times_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request's end; all moments in seconds from the start of the load."""

    at_s: float
    """When it was due: what latencies count from."""
    late_s: float
    """Sent after that: the load generator's own delay, part of every latency."""
    ended_at_s: float
    num_prompt_tokens: int
    """Sent; a server's tokenizer may count a text's otherwise."""
    max_tokens: int
    answer: Answer
    error: str = ""
    """A BatonError's reason; empty for an answer."""
    detail: str = ""
    """The error's message."""

    @property
    def moments(self) -> slo.Moments | None:
        """Of what came, were it the beginning of an answer; None: no token."""
        return self.answer.moments(self.at_s)

    @property
    def answered(self) -> slo.Moments | None:
        """Of a whole answer; None for everything else."""
        return None if self.error else self.moments
