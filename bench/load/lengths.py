"""How long prompts and answers are: given, drawn, or taken from a file."""

import math
from collections.abc import Callable, Sequence
from random import Random

from core.errors import ConfigError

Draw = Callable[[Random], int]
"""A number of tokens, at least 1."""
DrawPair = Callable[[Random], tuple[int, int]]
"""Of a prompt and of its answer."""

SYNTAX = "N, LOW:HIGH (uniform), or lognormal:MEDIAN:SIGMA[:MAX]"


def parse_lengths(option: str, text: str) -> Draw:
    """What a command line says. Raises ConfigError, which names the `option`."""
    try:
        match text.split(":"):
            case [num]:
                return _fixed(int(num))
            case ["lognormal", median, sigma]:
                return _lognormal(float(median), float(sigma), math.inf)
            case ["lognormal", median, sigma, most]:
                return _lognormal(float(median), float(sigma), float(most))
            case [low, high]:
                return _uniform(int(low), int(high))
    except ValueError:
        pass  # the error below says it all, as for what matches no case
    raise ConfigError((f"{option} must be {SYNTAX}, of at least 1 token; got {text!r}",))


def independent(prompt: Draw, output: Draw) -> DrawPair:
    """One says nothing about the other."""
    return lambda rng: (prompt(rng), output(rng))


def from_pairs(pairs: Sequence[tuple[int, int]]) -> DrawPair:
    """Any of these, each as likely, again and again: long prompts keep the answers they had."""
    return lambda rng: rng.choice(pairs)


def _fixed(num_tokens: int) -> Draw:
    if num_tokens < 1:
        raise ValueError
    return lambda _: num_tokens


def _uniform(low: int, high: int) -> Draw:
    if not 1 <= low <= high:
        raise ValueError
    return lambda rng: rng.randint(low, high)


def _lognormal(median: float, sigma: float, most: float) -> Draw:
    if not (1 <= median <= most and 0 <= sigma < math.inf):
        raise ValueError
    return lambda rng: max(1, round(min(most, rng.lognormvariate(math.log(median), sigma))))
