"""How long prompts and answers are: given, drawn, or taken from a file."""

import math
from collections.abc import Callable, Sequence
from random import Random

from planner.workload import distributions
from planner.workload.distributions import Fixed, Lognormal, Uniform

Draw = Callable[[Random], int]
"""A number of tokens, at least 1."""
DrawPair = Callable[[Random], tuple[int, int]]
"""Of a prompt and of its answer."""


def parse_lengths(option: str, text: str) -> Draw:
    """Of what the planner's option takes too. Raises ConfigError, which names the `option`."""
    match distributions.parse_lengths(option, text):
        case Fixed(num_tokens=num_tokens):
            return lambda _: num_tokens
        case Uniform(low=low, high=high):
            return lambda rng: rng.randint(low, high)
        case Lognormal() as lengths:
            return _lognormal(lengths)


def independent(prompt: Draw, output: Draw) -> DrawPair:
    """One says nothing about the other."""
    return lambda rng: (prompt(rng), output(rng))


def from_pairs(pairs: Sequence[tuple[int, int]]) -> DrawPair:
    """Any of these, each as likely, again and again: long prompts keep the answers they had."""
    return lambda rng: rng.choice(pairs)


def _lognormal(lengths: Lognormal) -> Draw:
    mu, sigma, most = math.log(lengths.median), lengths.sigma, lengths.most
    return lambda rng: max(1, round(min(most, rng.lognormvariate(mu, sigma))))
