"""Recent requests as a workload: played at their own moments, or those with time scaled."""

from dataclasses import dataclass

import numpy as np

from core.slo import Slo
from planner.online.window import Recent
from planner.search.judges import Promise
from planner.sim.traffic import Traffic, traffic
from policy.table import Bools, Floats, Ints

MAX_PLAYED = 8192
"""The last so many: a run takes some 50 ms, and a decision a hundred runs."""
SEED = 0
"""Of the lengths that are not known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """A `planner.search.inputs.Workload`; every seed gives the same traffic.

    A prompt's cached tokens are taken to be cached wherever it is read: nothing is computed for
    them, and they are attended to and moved as the others are.
    """

    at_s: Floats
    """From the first request on."""
    num_prompt_tokens: Ints
    num_cached_tokens: Ints
    num_output_tokens: Ints
    rate_per_s: float
    """As they came."""
    classes: tuple[Promise, ...]

    @property
    def is_random(self) -> bool:
        """Never."""
        return False

    def traffic(self, rate_per_s: float, num_requests: int, seed: int) -> Traffic:
        """As they came, but faster or slower; after the last the first comes again."""
        rounds, rows = np.divmod(np.arange(num_requests), len(self.at_s))
        round_s = len(self.at_s) / self.rate_per_s
        return traffic(
            (rounds * round_s + self.at_s[rows]) * (self.rate_per_s / rate_per_s),
            self.num_prompt_tokens[rows],
            self.num_output_tokens[rows],
            num_cached_tokens=self.num_cached_tokens[rows],
        )


def history_of(recent: Recent, *, slo: Slo, target: float, max_played: int = MAX_PLAYED) -> History:
    """Of at least two requests, one of which ended well, at two moments.

    Those that were refused or failed are played, too, or the load would be the less for them. What
    is not known of them is as another one had it.
    """
    tail = _tail(recent, max_played)
    rows = _known(tail.is_ok, is_prompt=tail.num_prompt_tokens > 0)
    prompts = np.where(tail.num_prompt_tokens > 0, tail.num_prompt_tokens, 0)
    prompts = np.where(prompts > 0, prompts, tail.num_prompt_tokens[rows])
    at_s = tail.at_s - tail.at_s[0]
    return History(
        at_s=at_s,
        num_prompt_tokens=prompts,
        # The last token is computed in any case: its logits give the first output token.
        num_cached_tokens=np.minimum(tail.num_hit_tokens[rows], prompts - 1),
        num_output_tokens=np.maximum(tail.num_output_tokens[rows], 1),
        rate_per_s=(len(at_s) - 1) / float(at_s[-1]),
        classes=(Promise(name="all", slo=slo, target=target),),
    )


def can_be_played(recent: Recent) -> bool:
    """Whether it holds enough for `history_of`."""
    tail = _tail(recent, MAX_PLAYED)
    return bool(tail.is_ok.any()) and bool(tail.at_s[-1] > tail.at_s[0])


def _tail(recent: Recent, num: int) -> Recent:
    if recent.num_requests <= num:
        return recent
    return recent.between(float(recent.at_s[-num]), recent.end_s)


def _known(is_ok: Bools, *, is_prompt: Bools) -> Ints:
    """Of each request the row that its lengths are read from: its own if it ended well."""
    known = np.flatnonzero(is_ok & is_prompt)
    rows = np.arange(is_ok.size)
    drawn = np.random.default_rng(SEED).choice(known, size=is_ok.size)
    return np.where(is_ok & is_prompt, rows, drawn)
