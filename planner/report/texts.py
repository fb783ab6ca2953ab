"""Figures as people read them."""

from math import isfinite, isinf

from planner.search.intervals import Interval
from planner.search.results import Quantiles

NONE = "–"


def seconds(value_s: float) -> str:
    """12.3 ms, 1.23 s; ∞ for what never came."""
    if isinf(value_s):
        return "∞"
    return f"{1000 * value_s:.3g} ms" if value_s < 1 else f"{value_s:.3g} s"


def quantile_texts(found: Quantiles) -> str:
    """P50, P90 and P99 in one unit."""
    values = (found.p50, found.p90, found.p99)
    known = [value for value in values if isfinite(value)]
    scale, unit = (1000, "ms") if known and max(known) < 1 else (1, "s")
    texts = ["∞" if isinf(value) else f"{scale * value:.3g}" for value in values]
    return f"{' / '.join(texts)} {unit}"


def share(found: Interval) -> str:
    """91.2 % (90.1 to 92.3)."""
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def goodput(found: Interval) -> str:
    """1.23 (1.20 to 1.31): the interval says what is sure."""
    high = "∞" if isinf(found.high) else f"{found.high:.3g}"
    return f"{found.value:.3g} ({found.low:.3g} to {high})"


def usd(value: float) -> str:
    """0: no price is known."""
    return NONE if not value or isinf(value) else f"{value:,.2f}"


def watts(average_w: float, provisioned_w: float) -> str:
    """Average of provisioned."""
    return NONE if not provisioned_w else f"{average_w:,.0f} / {provisioned_w:,.0f}"


def percent(value: float) -> str:
    """Of a load."""
    return f"{100 * value:.2g} %" if value else "0 %"
