"""What a router costs, what it stands, and which policy places best: over stub engines."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from bench.report import Bar, Figure, Report
from bench.router_latency import measure_latency
from bench.router_overload import measure_overload
from bench.router_placement import measure_placement
from bench.router_policies import measure_policies
from bench.router_quota import measure_quota
from bench.router_streams import measure_doors, measure_idle, measure_streams

Part = Callable[[bool], Awaitable[tuple[list[Figure], list[Bar]]]]


async def _placement(quick: bool) -> tuple[list[Figure], list[Bar]]:
    return measure_placement()


_PARTS: Mapping[str, Part] = {
    "placement": _placement,
    "latency": lambda quick: measure_latency(quick=quick),
    "streams": lambda quick: measure_streams(quick=quick),
    "doors": lambda quick: measure_doors(quick=quick),
    "idle": lambda _: measure_idle(),
    "quota": lambda quick: measure_quota(quick=quick),
    "policies": lambda quick: measure_policies(quick=quick),
    "overload": lambda quick: measure_overload(quick=quick),
}
PARTS = tuple(_PARTS)


def measure(
    *, quick: bool, on_progress: Callable[[str], None] = lambda _: None, only: str | None = None
) -> Report:
    """Every part, or one."""
    figures: list[Figure] = []
    bars: list[Bar] = []
    for name, part in _PARTS.items():
        if only in (None, name):
            on_progress(f"router: {name}")
            more_figures, more_bars = asyncio.run(_run(part, quick=quick))
            figures += more_figures
            bars += more_bars
    return Report(name="router", figures=tuple(figures), bars=tuple(bars))


async def _run(part: Part, *, quick: bool) -> tuple[list[Figure], list[Bar]]:
    return await part(quick)
