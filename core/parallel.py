"""How one instance's ranks share a model: which layers, heads and rows each of them holds.

Tensor-parallel ranks split every layer (Megatron-LM, Shoeybi et al. 2019, section 3), pipeline
stages split the layers. Splits are as even as whole heads and layers allow, not only where they
divide.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from core.model_spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelLayout:
    """tp × pp workers make one instance."""

    tp: int = 1
    """Tensor-parallel ranks; packed on one host."""
    pp: int = 1
    """Pipeline stages; may spread over hosts."""

    @property
    def num_workers(self) -> int:
        """Ranks of one instance."""
        return self.tp * self.pp

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        for name in ("tp", "pp"):
            if not 1 <= getattr(self, name) <= MAX_PARALLEL:
                yield f"{name} must be 1 to {MAX_PARALLEL}, got {getattr(self, name)}"

    def __str__(self) -> str:
        return f"{self.tp}x{self.pp}"

    @classmethod
    def parse(cls, text: str) -> "ParallelLayout":
        """What `str` gives: TPxPP. Raises ValueError for anything else."""
        tp, _, pp = text.partition("x")
        if not (tp.isdecimal() and pp.isdecimal()):
            raise ValueError(f"a layout is TPxPP, like 2x1, not {text!r}")
        layout = cls(tp=int(tp), pp=int(pp))
        if problems := list(layout.problems()):
            raise ValueError("; ".join(problems))
        return layout


MAX_PARALLEL = 64
"""Ranks of one kind; one address per rank has to fit into a member record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """One rank's place in its instance. Rank 0, the leader, is in the first stage."""

    layout: ParallelLayout = field(default_factory=ParallelLayout)
    rank: int = 0

    @property
    def stage(self) -> int:
        """Pipeline stage; the ranks of one stage have consecutive numbers."""
        return self.rank // self.layout.tp

    @property
    def tp_rank(self) -> int:
        """Among the ranks of its stage."""
        return self.rank % self.layout.tp

    @property
    def is_first_stage(self) -> bool:
        """It embeds tokens."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """It computes logits."""
        return self.stage == self.layout.pp - 1

    @property
    def stage_ranks(self) -> range:
        """The ranks it shares its layers with, itself included."""
        first = self.stage * self.layout.tp
        return range(first, first + self.layout.tp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one rank holds of every token's KV, and of the queries that read it."""

    layers: range
    query_heads: range
    kv_heads: range
    """Where there are fewer than ranks, several ranks hold the same head."""


def shard_of(spec: ModelSpec, place: RankPlace) -> Shard:
    """The part of `place`. Raises ValueError for a layout that `layout_problems` speaks of."""
    if problems := list(layout_problems(spec, place.layout)):
        raise ValueError("; ".join(problems))
    tp, group = place.layout.tp, spec.num_query_heads // spec.num_kv_heads
    if spec.num_kv_heads >= tp:
        kv_heads = split(spec.num_kv_heads, tp, place.tp_rank)
        query_heads = range(kv_heads.start * group, kv_heads.stop * group)
    else:
        first = place.tp_rank * spec.num_kv_heads // tp
        kv_heads = range(first, first + 1)
        query_heads = split(spec.num_query_heads, tp, place.tp_rank)
    layers = split(spec.num_layers, place.layout.pp, place.stage)
    return Shard(layers=layers, query_heads=query_heads, kv_heads=kv_heads)


class Splittable(Protocol):
    """What of a model a layout has to respect, whether it is loaded or only planned for."""

    @property
    def num_layers(self) -> int:
        """Pipeline stages are cut between them."""

    @property
    def num_query_heads(self) -> int:
        """Of one layer."""

    @property
    def num_kv_heads(self) -> int:
        """Of one layer; each is read by as many query heads."""


def layout_problems(model: Splittable, layout: ParallelLayout) -> Iterator[str]:
    """Why the model cannot be split so, if it cannot."""
    yield from layout.problems()
    num_query, num_kv, tp = model.num_query_heads, model.num_kv_heads, layout.tp
    if layout.pp > model.num_layers:
        yield f"pp = {layout.pp}: the model has {model.num_layers} layers"
    # A rank's query heads must read its one KV head, each of them.
    if num_kv < tp and (tp % num_kv or num_query % tp):
        yield (
            f"tp = {tp}: more ranks than the model's {num_kv} KV heads works only where it is a "
            f"multiple of them and divides the {num_query} query heads"
        )


def split(num: int, num_parts: int, part: int) -> range:
    """The `part`-th of `num_parts` runs; sizes differ by one at most, the larger come first."""
    size, rest = divmod(num, num_parts)
    start = part * size + min(part, rest)
    return range(start, start + size + (part < rest))
