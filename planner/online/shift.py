"""Whether the load has shifted: recent requests against the history that the plan was made from.

DistServe (OSDI '24, section 4.3) plans anew when its profile of request rate and lengths shows a
significant shift; Splitwise (ISCA '24, section 4) lets machines change pools when
the load does. Neither says what is significant: here a shift has to be beyond chance *and* large.
Arrivals are not taken for Poisson's. They come in bursts, and the variance of what comes in a
while is estimated from what came.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import NormalDist

import numpy as np

from planner.online.window import Recent
from policy.table import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a difference has to exceed."""

    alpha: float
    """Of all tests of one look together (Bonferroni): share of looks, where nothing has shifted,
    in which chance exceeds the bar."""
    rate_ratio: float
    """Of two rates, either way round."""
    distance: float
    """Between two distributions of lengths: the largest difference of their shares below any
    length (Kolmogorov and Smirnov's D), 0 to 1..."""
    mean_ratio: float
    """...or of their means, which load is proportional to: few long answers move D little."""


TO_BEGIN = Bar(alpha=0.01, rate_ratio=1.25, distance=0.15, mean_ratio=1.3)
"""A shift is suspected. 1 %, because it is asked for twice, a whole window apart: chance does it in
one of 10,000 windows. A rate that differs by less than 25 % stays within what sizing leaves as
spare; conversations and code differ by a distance of 0.4 and more, two halves of one hour of either
by 0.13 at most (Azure's traces)."""
TO_LAST = Bar(alpha=0.1, rate_ratio=1.15, distance=0.1, mean_ratio=1.2)
"""It goes on being suspected: about two thirds of that, or one look of chance would begin anew."""
STILL = Bar(alpha=1.0, rate_ratio=1.15, distance=0.1, mean_ratio=1.2)
"""Of the newest part of the window alone: it is short, so that hardly more is asked than that it
looks like it."""
NEWEST = 0.25
"""Share of the window, or as much of it as holds twice MIN_REQUESTS."""
NUM_BUCKETS = 32
"""Of the recent window: enough to tell their variance (to 25 %), and long enough, 19 s of ten
minutes, to hold a burst whole."""
MIN_REQUESTS = 100
"""In either: with fewer a distance of 0.15 is chance at 1 %."""
NUM_TESTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One thing that was watched."""

    name: str
    before: float
    now: float
    """Means."""
    is_shifted: bool
    how: str
    """For people: what was measured, and what it was measured by."""

    def __str__(self) -> str:
        """For people."""
        verdict = "shifted" if self.is_shifted else "as it was"
        return f"{self.name} {verdict}: {self.before:,.4g} before, {self.now:,.4g} now ({self.how})"


def compared(reference: Recent, recent: Recent, bar: Bar) -> tuple[Compared, ...]:
    """Rate, prompts, answers; none where either holds too few requests."""
    if min(reference.num_answered, recent.num_answered) < MIN_REQUESTS:
        return ()
    return tuple(_compared(reference, recent, bar))


def newest(recent: Recent) -> Recent:
    """Of a shift that lasts the end of the window shows it, too."""
    begin_s = recent.end_s - NEWEST * recent.span_s
    if recent.num_requests > 2 * MIN_REQUESTS:
        begin_s = min(begin_s, float(recent.at_s[-2 * MIN_REQUESTS]))
    return recent.between(begin_s, recent.end_s)


def _compared(reference: Recent, recent: Recent, bar: Bar) -> Iterator[Compared]:
    yield _rates(reference, recent, bar)
    yield _lengths("prompts", reference.computed_tokens, recent.computed_tokens, bar)
    yield _lengths("answers", reference.output_tokens, recent.output_tokens, bar)


def _rates(reference: Recent, recent: Recent, bar: Bar) -> Compared:
    """Welch's test on the logarithm of the mean number of arrivals in a bucket."""
    bucket_s = recent.span_s / NUM_BUCKETS
    before, now = _counts(reference, bucket_s), _counts(recent, bucket_s)
    errors = [_relative_error(each) for each in (before, now)]
    # Half a request more in all: an empty window has a logarithm, too.
    means = [(int(each.sum()) + 0.5) / each.size for each in (before, now)]
    ratio = means[1] / means[0]
    score = abs(log(ratio)) / sqrt(sum(error**2 for error in errors))
    limit = t_quantile(1 - bar.alpha / NUM_TESTS / 2, _freedom(errors, (before.size, now.size)))
    is_large = max(ratio, 1 / ratio) >= bar.rate_ratio
    return Compared(
        name="rate",
        before=reference.rate_per_s,
        now=recent.rate_per_s,
        is_shifted=is_large and score > limit,
        how=f"{score:.1f} standard errors of {limit:.1f}; × {ratio:.2f} of × {bar.rate_ratio:g}",
    )


def _counts(each: Recent, bucket_s: float) -> Ints:
    """Of whole buckets, the last of which ends with the window."""
    num = max(2, round(each.span_s / bucket_s))
    places = np.floor((each.at_s - each.end_s) / bucket_s).astype(np.int64) + num
    return np.bincount(places[(places >= 0) & (places < num)], minlength=num)


def _relative_error(counts: Ints) -> float:
    """Of their mean. Buckets that follow one another are alike, so that the mean of them is less
    sure than as many independent ones would make it: Newey and West's estimate, with Bartlett's
    weights; and never surer than Poisson's."""
    num, mean = counts.size, max(float(counts.mean()), 0.5 / counts.size)
    rest = counts - mean
    variance = own = float(rest @ rest) / (num - 1)
    lags = int(num ** (1 / 3))
    for lag in range(1, lags + 1):
        variance += 2 * (1 - lag / (lags + 1)) * float(rest[lag:] @ rest[:-lag]) / (num - 1)
    return sqrt(max(variance, own, mean) / num) / mean


def _freedom(errors: list[float], sizes: tuple[int, int]) -> float:
    """Welch and Satterthwaite's degrees of freedom."""
    parts = [error**2 for error in errors]
    return float(sum(parts)) ** 2 / sum(p**2 / (n - 1) for p, n in zip(parts, sizes, strict=True))


def t_quantile(share: float, freedom: float) -> float:
    """Student's, for at least 5 degrees of freedom (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return z + first + second + third


def _lengths(name: str, before: Ints, now: Ints, bar: Bar) -> Compared:
    """Kolmogorov and Smirnov's test: of lengths or of their logarithms, it is the same."""
    d = distance(before, now)
    chance = _chance(d, before.size, now.size)
    means = float(before.mean()), float(now.mean())
    ratio = (means[1] + 1) / (means[0] + 1)
    is_large = d >= bar.distance or max(ratio, 1 / ratio) >= bar.mean_ratio
    return Compared(
        name=name,
        before=means[0],
        now=means[1],
        is_shifted=is_large and chance < bar.alpha / NUM_TESTS,
        how=f"distance {d:.2f} of {bar.distance:g}; mean × {ratio:.2f} of × {bar.mean_ratio:g}",
    )


def distance(before: Ints, now: Ints) -> float:
    """Kolmogorov and Smirnov's D, 0 to 1."""
    both = np.concatenate((before, now))
    shares = [
        np.searchsorted(np.sort(each), both, side="right") / each.size for each in (before, now)
    ]
    gaps: Floats = np.abs(shares[0] - shares[1])
    return float(gaps.max())


def _chance(d: float, num_before: int, num_now: int) -> float:
    """Of so large a D by chance alone, where requests are independent (Kolmogorov's limit)."""
    size = sqrt(num_before * num_now / (num_before + num_now))
    scaled = (size + 0.12 + 0.11 / size) * d
    if scaled < 0.3:
        return 1.0  # the series converges slowly where it is 1 to five digits
    terms = ((2 if k % 2 else -2) * exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms)))
