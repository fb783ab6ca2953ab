"""Which steps `baton profile` measures, decided before any is seen, and which ones fit a budget."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from core.profile import StepShape

PAIRS_PER_TOKEN = 1000.0
"""That many (token, token attended to) cost about as much as one computed token: for the order
of the points only."""

Sizes = tuple[int, int, int]
"""Entries, tokens computed per entry, tokens cached per entry."""

# What a CPU cannot do in the time is for GPUs, which the smaller steps do not saturate.
# Batches of short prompts beside whole long ones: they say what a long prompt's own attention
# costs, and at which total length the device is saturated.
PREFILL: tuple[Sizes, ...] = (
    *((1, 16, 0), (1, 32, 0), (1, 64, 0), (1, 128, 0), (1, 256, 0), (1, 512, 0), (1, 1024, 0)),
    *((2, 32, 0), (4, 32, 0), (4, 64, 0), (8, 64, 0), (16, 64, 0)),
    *((1, 2048, 0), (32, 64, 0), (1, 4096, 0), (64, 64, 0), (1, 8192, 0), (128, 64, 0)),
    *((1, 64, 512), (1, 64, 1024), (1, 256, 512), (1, 256, 1024), (4, 64, 256)),
)
HELD_OUT_PREFILL: tuple[Sizes, ...] = (
    *((1, 24, 0), (1, 48, 0), (1, 96, 0), (1, 192, 0), (1, 384, 0), (1, 768, 0)),
    *((3, 64, 0), (6, 64, 0), (1, 96, 320), (1, 128, 768)),
    *((1, 1536, 0), (24, 64, 0), (1, 3072, 0), (48, 64, 0), (1, 6144, 0), (96, 64, 0)),
)
DECODE: tuple[Sizes, ...] = (
    *(
        (batch, 1, context - 1)
        for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256)
        for context in (64, 512, 1024, 4096)
    ),
    # 12,288 tokens of context: on CPUs steps take a jump where K and V outgrow the caches.
    *((8, 1, 1535), (16, 1, 767), (32, 1, 383)),
)
HELD_OUT_DECODE: tuple[Sizes, ...] = tuple(
    (batch, 1, context - 1)
    for batch, context in (
        *((1, 160), (1, 700), (2, 400), (3, 128), (4, 160), (6, 400), (8, 700), (12, 160)),
        *((12, 700), (16, 400), (24, 128), (24, 400), (48, 128), (96, 96), (160, 256)),
    )
)
REDUCED: frozenset[Sizes] = frozenset(
    {
        *((1, 16, 0), (1, 64, 0), (1, 256, 0), (1, 512, 0), (4, 64, 0), (8, 64, 0), (1, 64, 512)),
        *((1, 32, 0), (1, 128, 0), (4, 32, 0)),
        *((1, 48, 0), (1, 96, 0), (1, 192, 0), (3, 64, 0)),
        *((b, 1, c - 1) for b in (1, 2, 4, 8, 16) for c in (64, 512)),
        *((b, 1, c - 1) for b, c in ((1, 160), (2, 400), (6, 400), (12, 160))),
    }
)
"""Enough for every coefficient: what `--quick` and the loaded machine are measured with."""


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One step to measure."""

    shape: StepShape
    held_out: bool
    reduced: bool
    """Also measured when time is short, and on the loaded machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the model and the KV cache allow."""

    max_context_tokens: int
    num_blocks: int
    block_size: int

    def holds(self, shape: StepShape) -> bool:
        """Whether the step's context fits."""
        context = shape.num_cached_tokens + shape.num_tokens
        num_blocks = shape.batch * -(-context // self.block_size)
        return context <= self.max_context_tokens and num_blocks <= self.num_blocks


def grid(room: Room, *, quick: bool) -> list[GridPoint]:
    """What there is to measure: what is needed first, and of that the cheapest first."""
    points = [p for p in _all_points() if room.holds(p.shape) and (p.reduced or not quick)]
    return sorted(points, key=lambda p: (not p.reduced, weight(p.shape)))


def weight(shape: StepShape) -> float:
    """Roughly what a step costs, in computed tokens."""
    return shape.num_step_tokens + shape.num_context_pairs / PAIRS_PER_TOKEN


def affordable(
    points: Sequence[GridPoint],
    cost_s: Callable[[GridPoint], float],
    guess_s: Callable[[GridPoint], float],
    budget_s: float,
) -> list[GridPoint]:
    """As many of the points, from the first, as fit the budget.

    `cost_s` takes one step to find out; `guess_s` says without which ones to leave alone.
    """
    kept: list[GridPoint] = []
    for point in points:
        if guess_s(point) > budget_s or (found_s := cost_s(point)) > budget_s:
            break
        budget_s -= found_s
        kept.append(point)
    return kept


def between_fitted(points: Sequence[GridPoint]) -> list[GridPoint]:
    """Without held-out points beyond the fitted ones of their kind: dropping the dearest leaves
    some, and a fit is not judged by what it was not made for."""
    return [point for point in points if not point.held_out or _is_between(point.shape, points)]


def _is_between(shape: StepShape, points: Sequence[GridPoint]) -> bool:
    fitted = [p.shape for p in points if not p.held_out and p.shape.kind == shape.kind]
    most_tokens = max((s.num_step_tokens for s in fitted), default=0)
    most_pairs = max((s.num_context_pairs for s in fitted), default=0)
    return shape.num_step_tokens <= most_tokens and shape.num_context_pairs <= most_pairs


def _all_points() -> Iterator[GridPoint]:
    for kind, held_out, sizes in (
        ("prefill", False, PREFILL),
        ("prefill", True, HELD_OUT_PREFILL),
        ("decode", False, DECODE),
        ("decode", True, HELD_OUT_DECODE),
    ):
        for batch, num_tokens, cached in sizes:
            shape = StepShape(
                kind=kind, batch=batch, num_tokens=num_tokens, num_cached_tokens=cached
            )
            yield GridPoint(shape, held_out, (batch, num_tokens, cached) in REDUCED)
