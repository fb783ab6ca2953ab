"""How long prompts are and, together with them, their answers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import numpy as np

from planner.workload.columns import MAX_TOKENS, Requests, Trace, picked, without_blocks
from planner.workload.distributions import Distribution, Sampled
from policy.table import Ints


class Lengths(Protocol):
    """Of the requests of one class, one after the other."""

    @property
    def mean_prompt_tokens(self) -> float:
        """Of a long run."""
        ...

    @property
    def mean_output_tokens(self) -> float:
        """Of a long run."""
        ...

    @property
    def is_random(self) -> bool:
        """False: every seed gives the same."""
        ...

    def draw(self, rng: np.random.Generator, num: int) -> Requests:
        """The next so many; the first of more are those of fewer."""
        ...

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Independent:
    """Prompts say nothing about answers."""

    prompt: Distribution
    output: Distribution

    @property
    def mean_prompt_tokens(self) -> float:
        """Of a long run."""
        return self.prompt.mean

    @property
    def mean_output_tokens(self) -> float:
        """Of a long run."""
        return self.output.mean

    @property
    def is_random(self) -> bool:
        """As far as is known here."""
        return True

    def draw(self, rng: np.random.Generator, num: int) -> Requests:
        """From a stream of random numbers for each of the two."""
        prompts, outputs = rng.spawn(2)
        return without_blocks(self.prompt.draw(prompts, num), self.output.draw(outputs, num))

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        yield from (f"prompt: {each}" for each in self.prompt.problems())
        yield from (f"output: {each}" for each in self.output.problems())

    def __str__(self) -> str:
        """For people."""
        return f"prompts {self.prompt}, outputs {self.output}, independent"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Any of these requests, each as likely, again and again: long prompts keep the answers they
    had. What prompts had in common is lost."""

    num_prompt_tokens: Ints
    num_output_tokens: Ints

    @property
    def mean_prompt_tokens(self) -> float:
        """Of a long run."""
        return float(self.num_prompt_tokens.mean())

    @property
    def mean_output_tokens(self) -> float:
        """Of a long run."""
        return float(self.num_output_tokens.mean())

    @property
    def is_random(self) -> bool:
        """Yes."""
        return True

    def apart(self) -> Independent:
        """Prompts and answers of the same lengths, drawn separately: what published simulators
        do."""
        return Independent(
            prompt=Sampled(values=self.num_prompt_tokens),
            output=Sampled(values=self.num_output_tokens),
        )

    def draw(self, rng: np.random.Generator, num: int) -> Requests:
        """With replacement."""
        rows = rng.integers(len(self.num_prompt_tokens), size=num)
        return without_blocks(self.num_prompt_tokens[rows], self.num_output_tokens[rows])

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        yield from self.apart().problems()

    def __str__(self) -> str:
        """For people."""
        return f"drawn from {len(self.num_prompt_tokens):,} pairs"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """A trace's own requests in their order, and from the first on when they are used up. Each
    round has blocks of its own: within it prompts share what they shared, and nothing between
    rounds, or every prompt would be cached from the second one on."""

    trace: Trace

    @property
    def mean_prompt_tokens(self) -> float:
        """Of a whole round."""
        return float(self.trace.requests.num_prompt_tokens.mean())

    @property
    def mean_output_tokens(self) -> float:
        """Of a whole round."""
        return float(self.trace.requests.num_output_tokens.mean())

    @property
    def is_random(self) -> bool:
        """Never."""
        return False

    def resampled(self) -> Pairs:
        """Its lengths, drawn."""
        requests = self.trace.requests
        return Pairs(
            num_prompt_tokens=requests.num_prompt_tokens,
            num_output_tokens=requests.num_output_tokens,
        )

    def draw(self, rng: np.random.Generator, num: int) -> Requests:
        """The generator is not asked."""
        requests = self.trace.requests
        rounds, rows = np.divmod(np.arange(num), len(requests.num_prompt_tokens))
        drawn = picked(requests, rows)
        rounds_of_blocks = np.repeat(rounds, np.diff(drawn.first_block))
        return drawn._replace(blocks=drawn.blocks + rounds_of_blocks * self.trace.num_blocks)

    def problems(self) -> Iterator[str]:
        """None: the reader has looked."""
        yield from ()

    def __str__(self) -> str:
        """For people."""
        return f"the {len(self.trace.at_s):,} requests of a trace, in order"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretched:
    """Other lengths, with answers so many times as long: whole tokens, at least 1."""

    lengths: Lengths
    output_factor: float

    @property
    def mean_prompt_tokens(self) -> float:
        """Of a long run."""
        return self.lengths.mean_prompt_tokens

    @property
    def mean_output_tokens(self) -> float:
        """Of a long run, but for rounding to whole ones."""
        return max(1.0, self.lengths.mean_output_tokens * self.output_factor)

    @property
    def is_random(self) -> bool:
        """As without the factor."""
        return self.lengths.is_random

    def draw(self, rng: np.random.Generator, num: int) -> Requests:
        """The same requests as without the factor."""
        drawn = self.lengths.draw(rng, num)
        outputs = np.rint(drawn.num_output_tokens * self.output_factor)
        whole = np.clip(outputs, 1, MAX_TOKENS).astype(np.int64)
        return drawn._replace(num_output_tokens=whole)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        yield from self.lengths.problems()
        if not 0 < self.output_factor < inf:
            yield f"outputs must be scaled by a number above 0, got {self.output_factor:g}"

    def __str__(self) -> str:
        """For people."""
        return f"{self.lengths}, outputs × {self.output_factor:g}"


def resampled(lengths: Lengths) -> Lengths:
    """A trace's requests as pairs to draw from; anything else as it is."""
    match lengths:
        case Recorded():
            return lengths.resampled()
        case Stretched():
            return replace(lengths, lengths=resampled(lengths.lengths))
    return lengths
