"""What was served of late: requests that ended, of all routers, in a window that slides.

Prompt tokens whose KV was cached are not computed again: the prompts that planning has to do with
are `num_prompt_tokens - num_hit_tokens` long.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from core.slo import Slo
from policy.table import Bools, Floats, Ints

MAX_KEPT = 65_536
"""Requests in the window; beyond, it is shorter than was asked for. Ten minutes of 100 a second;
about 10 MB."""
MIN_LAG_SHARE, MAX_LAG_SHARE = 0.02, 0.5
"""Of the window: how far behind now it ends, see `Window.recent`."""
LAG_QUANTILE = 0.99
"""Of how long requests take: so many of those that came in the window have ended."""
NOT_OFFERED = frozenset(
    {
        *("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED"),
        *("FAILED_PRECONDITION", "OUT_OF_RANGE", "UNAUTHENTICATED", "PERMISSION_DENIED"),
    }
)
"""Statuses of requests that no cluster of any size would have answered: they are no load."""
MISSED = "MISSED"
"""Status of one that a router forgot before it was asked: nothing else is known of it."""


class Ended(NamedTuple):
    """One request, as Cluster/Workload tells it."""

    arrived_at_s: float
    """On the clock of whoever asks: now less `arrived_ago_s`."""
    num_prompt_tokens: int
    num_hit_tokens: int
    num_output_tokens: int
    ttft_s: float
    tpot_s: float
    status: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recent:
    """The window at one moment: columns, in order of arrival."""

    begin_s: float
    end_s: float
    at_s: Floats
    num_prompt_tokens: Ints
    """0: not known."""
    num_hit_tokens: Ints
    num_output_tokens: Ints
    ttft_s: Floats
    tpot_s: Floats
    is_ok: Bools
    """It ended well. Of others it is known that they came, and perhaps how long the prompt was."""

    @property
    def num_requests(self) -> int:
        """That were offered."""
        return len(self.at_s)

    @property
    def num_answered(self) -> int:
        """Of which the lengths are known."""
        return int(np.count_nonzero(self.is_ok))

    @property
    def span_s(self) -> float:
        """Of the window."""
        return self.end_s - self.begin_s

    @property
    def rate_per_s(self) -> float:
        """Of arrivals, refused ones too."""
        return self.num_requests / self.span_s if self.span_s > 0 else 0.0

    @property
    def computed_tokens(self) -> Ints:
        """Of each prompt that was answered: what had to be computed."""
        return (self.num_prompt_tokens - self.num_hit_tokens)[self.is_ok]

    @property
    def output_tokens(self) -> Ints:
        """Of each answer."""
        return self.num_output_tokens[self.is_ok]

    def attainment(self, slo: Slo) -> float:
        """As `core.slo.attainment`: joint; what was refused or failed misses."""
        if not self.num_requests:
            return 1.0
        kept = self.is_ok.copy()
        # A TPOT that is undefined is told as 0, and keeps any limit.
        for limit_s, value_s in (
            (slo.ttft_s, self.ttft_s),
            (slo.tpot_s, self.tpot_s),
            (slo.e2e_s, self.e2e_s),
        ):
            if limit_s is not None:
                kept &= value_s <= limit_s
        return float(kept.mean())

    @property
    def e2e_s(self) -> Floats:
        """Of each answer, from its parts."""
        return self.ttft_s + self.tpot_s * np.maximum(self.num_output_tokens - 1, 0)

    def between(self, begin_s: float, end_s: float) -> "Recent":
        """A part of it."""
        rows = slice(*np.searchsorted(self.at_s, (begin_s, end_s)))
        columns = {name: getattr(self, name)[rows] for name in COLUMNS}
        return Recent(begin_s=begin_s, end_s=end_s, **columns)


COLUMNS = tuple(each.name for each in fields(Recent) if each.name not in ("begin_s", "end_s"))


def merged(first: Recent, second: Recent) -> Recent:
    """All of both, in order of arrival."""
    order = np.argsort(np.concatenate((first.at_s, second.at_s)), kind="stable")
    columns = {
        name: np.concatenate((getattr(first, name), getattr(second, name)))[order]
        for name in COLUMNS
    }
    return Recent(
        begin_s=min(first.begin_s, second.begin_s),
        end_s=max(first.end_s, second.end_s),
        **columns,
    )


class Window:
    """Fed by whoever asks the routers; bounded."""

    def __init__(self, *, window_s: float, began_at_s: float, max_kept: int = MAX_KEPT) -> None:
        """`began_at_s`: from when on all that ended is told."""
        self._window_s = window_s
        self._max_kept = max_kept
        self._kept = columns_of((), began_at_s, began_at_s)

    def add(
        self, ended: Iterable[Ended], *, num_missed: int = 0, since_s: float = 0.0, now_s: float
    ) -> None:
        """One router's answer; those that it forgot are taken to have come evenly since it was
        asked before."""
        num = min(num_missed, self._max_kept)
        moments = np.linspace(since_s, now_s, num, endpoint=False).tolist()
        rows = [each for each in ended if each.status not in NOT_OFFERED]
        rows += [Ended(at_s, 0, 0, 0, 0.0, 0.0, MISSED) for at_s in moments]
        oldest_s = now_s - (1 + MAX_LAG_SHARE) * self._window_s
        begin_s = max(self._kept.begin_s, oldest_s)
        both = merged(self._kept, columns_of(rows, begin_s, now_s))
        if both.num_requests > self._max_kept:
            # What is full holds nothing whole from before its oldest request.
            begin_s = max(begin_s, float(both.at_s[-self._max_kept]))
        self._kept = both.between(begin_s, max(begin_s, now_s))

    def recent(self, now_s: float) -> Recent:
        """The window, so far behind now that nearly all that came in it have ended: those that
        still run are not told yet, and it would seem that fewer come."""
        begin_s = self._kept.begin_s
        end_s = max(now_s - self._lag_s(), begin_s)
        return self._kept.between(max(begin_s, end_s - self._window_s), end_s)

    def _lag_s(self) -> float:
        took_s = self._kept.e2e_s[self._kept.is_ok]
        lag_s = float(np.quantile(took_s, LAG_QUANTILE)) if took_s.size else 0.0
        least_s, most_s = MIN_LAG_SHARE * self._window_s, MAX_LAG_SHARE * self._window_s
        return min(max(lag_s, least_s), most_s)


def columns_of(ended: Iterable[Ended], begin_s: float, end_s: float) -> Recent:
    """Those that came between two moments, in order of arrival."""
    rows = sorted(each for each in ended if begin_s <= each.arrived_at_s < end_s)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(Ended._fields)
    at_s, prompt, hit, output, ttft_s, tpot_s, status = columns
    return Recent(
        begin_s=begin_s,
        end_s=end_s,
        at_s=np.array(at_s, dtype=np.float64),
        num_prompt_tokens=np.array(prompt, dtype=np.int64),
        num_hit_tokens=np.array(hit, dtype=np.int64),
        num_output_tokens=np.array(output, dtype=np.int64),
        ttft_s=np.array(ttft_s, dtype=np.float64),
        tpot_s=np.array(tpot_s, dtype=np.float64),
        is_ok=np.array([each == "OK" for each in status], dtype=np.bool_),
    )
