"""A checkpoint's tensors as transformers reads them, each of them only this rank's part."""

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import torch

from engine.sharding.cuts import Cut, Cuts

EXPERT = re.compile(r"(.*layers\.\d+)\..*experts\.\d+\.(\w+)\.weight")
"""One expert's matrix, where a file keeps them apart: (its layer, what it is)."""
EXPERTS = re.compile(r"(.*layers\.\d+)\..*experts\.(\w+)")
"""A parameter of all experts of a layer."""
FUSED_AS = {
    **dict.fromkeys(("w1", "w3", "gate_proj", "up_proj"), "gate_up_proj"),
    **dict.fromkeys(("w2", "down_proj"), "down_proj"),
}
"""The parameter that transformers makes of all experts' matrices of a name."""


class Source:
    """A tensor in a file, read when it is indexed: what transformers takes for a state dict."""

    def __init__(self, view: Any, target: str | None, cut: Cut | None, *, owns: bool) -> None:  # noqa: ANN401
        """`view` is safetensors' slice of a mapped file, `target` the parameter that gets the part
        `cut` of it. Unless it `owns` its memory the part stays mapped."""
        self.target = target
        self._view = view
        self._cut = cut
        self._owns = owns

    def __getitem__(self, key: object) -> torch.Tensor:
        tensor: torch.Tensor = self._view[key]
        part = tensor if self._cut is None else self._cut.of(tensor)
        return part.clone(memory_format=torch.contiguous_format) if self._owns else part


class Sources:
    """Finds for every tensor of a file where it goes."""

    def __init__(self, shapes: Mapping[str, torch.Size], cuts: Cuts, prefix: str) -> None:
        """`shapes` are the whole model's; `prefix` checkpoints have before their names, or not."""
        self._shapes = shapes
        self._parts = cuts.parts
        self._prefix = prefix
        matches = [(target, EXPERTS.fullmatch(target)) for target in cuts.parts]
        self._experts = {(match[1], match[2]): target for target, match in matches if match}

    def read(self, paths: Iterable[Path], opened: ExitStack) -> dict[str, Source]:
        """Every tensor by its name in the files; `opened` must outlive their use."""
        found = {}
        for path in paths:
            file = opened.enter_context(safetensors.safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118  not a dict
                found[name] = self._source(name, file.get_slice(name))
        return found

    def _source(self, name: str, view: Any) -> Source:  # noqa: ANN401
        shape = tuple(view.get_shape())
        for target in self._spellings(name):
            if self._shapes.get(target) == shape:
                # Memory of its own, and no more than the part: else a file's pages stay with it.
                return Source(view, target, self._parts.get(target), owns=True)
        if fused := self._fused(name, shape):
            cut = self._parts[fused]
            return Source(view, fused, Cut(cut.dim - 1, cut.runs[:1]), owns=False)
        # Handed on as it is: transformers knows what to make of it, and it is cut afterwards.
        return Source(view, None, None, owns=False)

    def _fused(self, name: str, shape: tuple[int, ...]) -> str | None:
        """The experts' parameter that a single expert's matrix becomes a part of, if it is cut."""
        if not (match := EXPERT.fullmatch(name)) or match[2] not in FUSED_AS:
            return None
        for layer in self._spellings(match[1]):
            if target := self._experts.get((layer, FUSED_AS[match[2]])):
                cut = self._parts[target]
                one = list(self._shapes[target][1:])
                one[cut.dim - 1] //= len(cut.runs)
                return target if tuple(one) == shape else None
        return None

    def _spellings(self, name: str) -> tuple[str, ...]:
        """With or without the prefix, which is transformers' own rule."""
        return name, f"{self._prefix}.{name}", name.removeprefix(f"{self._prefix}.")
