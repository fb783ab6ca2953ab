"""The small modules that make a part of a model act as the whole."""

from collections.abc import Callable

import torch
from torch import nn

AllReduce = Callable[[torch.Tensor], None]
"""Sums a contiguous tensor over the ranks of a stage, in place; every rank calls it in turn."""


class SummedLinear(nn.Module):
    """A linear layer whose inputs are split: the ranks' products are added up.

    The layer stays a child of its own, so that it can be replaced by a faster one.
    """

    def __init__(self, linear: nn.Linear, bias: nn.Parameter | None, all_reduce: AllReduce) -> None:
        """`linear` has no bias: added before the sum it would count once per rank."""
        super().__init__()
        self.linear = linear
        self.bias = bias
        self._all_reduce = all_reduce

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., this rank's inputs] → [..., outputs], the same on every rank."""
        out: torch.Tensor = self.linear(rows)
        self._all_reduce(out)
        return out if self.bias is None else out + self.bias


class SummedOutput(nn.Module):
    """A module that computes a summand of its output on each rank: the experts of a layer."""

    def __init__(self, inner: nn.Module, all_reduce: AllReduce) -> None:
        super().__init__()
        self.inner = inner
        self._all_reduce = all_reduce

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        """Whatever the module takes."""
        out: torch.Tensor = self.inner(*args, **kwargs).contiguous()
        self._all_reduce(out)
        return out


class VocabEmbedding(nn.Module):
    """An embedding of which this rank holds the tokens `rows`."""

    def __init__(self, embedding: nn.Embedding, rows: range, all_reduce: AllReduce) -> None:
        """`embedding` has the rows of these tokens alone; a scale it applies stays its own."""
        super().__init__()
        self.embedding = embedding
        self._rows = rows
        self._all_reduce = all_reduce

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[..., hidden], the same on every rank."""
        others = (token_ids < self._rows.start) | (token_ids >= self._rows.stop)
        local = (token_ids - self._rows.start).masked_fill(others, 0)
        out: torch.Tensor = self.embedding(local).masked_fill(others[..., None], 0)
        self._all_reduce(out)
        return out


class PassThrough(nn.Module):
    """In the place of what another stage computes."""

    def forward(self, hidden: torch.Tensor, *_args: object, **_kwargs: object) -> torch.Tensor:
        """The very tensor that came in."""
        return hidden


class NoPositions(nn.Module):
    """In the place of learned positions where the first stage has added them already."""

    def __init__(self) -> None:
        super().__init__()
        # Minus zero: plus zero would turn a hidden state's -0.0 into 0.0.
        self.register_buffer("nothing", torch.tensor(-0.0), persistent=False)

    def forward(self, *_args: object, **_kwargs: object) -> torch.Tensor:
        """A scalar that changes nothing it is added to."""
        return self.get_buffer("nothing")


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of `name`, unless that is None: some models of a kind have no
    norm or no projection."""
    parent_name, _, leaf = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if getattr(parent, leaf) is not None:
        setattr(parent, leaf, module)
