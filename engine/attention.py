"""Paged attention under every transformers architecture that has an attention interface."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from core.errors import ModelError
from engine.kv_cache import KvCache
from engine.step_plan import DecodeGroup, PagedTable, PrefillSpan, SlotIndex, StepPlan

NAME = "baton"
"""As registered with transformers."""

UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Keyword arguments that change the scores in ways this attention does not compute."""


class GatherBuffers:
    """Memory that the gathers of all layers and steps share, one buffer for K and one for V.

    Fresh memory of many megabytes is mapped and faulted in each time: at 16 answers of 1,024 tokens
    that made a decode step of 260 ms last up to 570 ms.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor | None] = [None, None]

    def rows(self, which: int, cache: torch.Tensor, index: SlotIndex) -> torch.Tensor:
        """Rows of a layer's K (0) or V (1), valid until the next call: a view where they are one
        run."""
        if isinstance(index, slice):
            return cache[index]
        buffer = self._buffers[which]
        if buffer is None or len(buffer) < len(index):
            buffer = self._buffers[which] = cache.new_empty((len(index), *cache.shape[1:]))
        return torch.index_select(cache, 0, index, out=buffer[: len(index)])


class PagedKernel(Protocol):
    """Attention for the chunks or for the answers of a step, reading KV where it lies."""

    def __call__(
        self,
        query: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        table: PagedTable,
        scale: float,
        window: int | None,
        out: torch.Tensor,
    ) -> None:
        """`query` is [query head, row, dim], `kv` are [slot, KV head, dim], `out` is [row, query
        head, dim], all of the whole flat batch; only the rows it is meant for are written."""
        ...


class KvWriter(Protocol):
    """Puts a step's K and V into the cache."""

    def __call__(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        index: SlotIndex,
    ) -> None:
        """`key` and `value` are [KV head, row, dim], `kv` are [slot, KV head, dim]; row i belongs
        into slot `index[i]`."""
        ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """What there is for a device and a dtype; torch's operations over gathered KV do the rest."""

    prefill: PagedKernel | None = None
    decode: PagedKernel | None = None
    write: KvWriter | None = None


class StepAttention:
    """One step's attention: what the model call carries down to every layer as `baton_step`."""

    def __init__(
        self,
        cache: KvCache,
        plan: StepPlan,
        buffers: GatherBuffers,
        on_written: Callable[[int], None],
        kernels: Kernels,
    ) -> None:
        self._cache = cache
        self._plan = plan
        self._rows_of = buffers.rows
        self._on_written = on_written
        self._kernels = kernels

    def attend(
        self,
        layer: int,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Write K and V [head, row, dim] of the flat batch, then attend.

        Returns [row, head, dim].
        """
        query, key, value = qkv
        keys, values = self._cache.layer(layer)
        (self._kernels.write or _write)(key, value, (keys, values), self._plan.write_index)
        self._on_written(layer)
        out = query.new_empty((query.shape[1], query.shape[0], query.shape[2]))
        table = self._plan.table
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if self._plan.prefills:
            if (kernel := self._kernels.prefill) is not None:
                kernel(query, (keys, values), table, scale, window, out)
            else:
                self._prefill(qkv, (keys, values), scale, window, out)
        if self._plan.decodes:
            if (kernel := self._kernels.decode) is not None:
                kernel(query, (keys, values), table, scale, window, out)
            else:
                self._decode(query, (keys, values), scale, window, out)
        return out

    def _prefill(
        self,
        qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        kv: tuple[torch.Tensor, torch.Tensor],
        scale: float,
        window: int | None,
        out: torch.Tensor,
    ) -> None:
        query, key, value = qkv
        keys, values = kv
        for span in self._plan.prefills:
            rows = span.rows
            # Before anything is cached, K and V of the chunk are all there is: no gather.
            k = self._rows_of(0, keys, span.index) if span.start else key[:, rows].transpose(0, 1)
            v = (
                self._rows_of(1, values, span.index)
                if span.start
                else value[:, rows].transpose(0, 1)
            )
            out[rows] = _prefill(query[:, rows], k, v, _prefill_mask(span, window, query), scale)

    def _decode(
        self,
        query: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        scale: float,
        window: int | None,
        out: torch.Tensor,
    ) -> None:
        keys, values = kv
        for group in self._plan.decodes:
            k, v = self._rows_of(0, keys, group.index), self._rows_of(1, values, group.index)
            mask = _decode_mask(group, window, query)
            out[group.rows] = _decode(query[:, group.rows], k, v, mask, scale)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """The function registered with transformers; tensors are [1, heads, rows, dim]."""
    step = kwargs["baton_step"]
    assert isinstance(step, StepAttention)
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ModelError(f"{type(module).__name__}: attention with {name} is not supported")
    layer, scale, window = module.layer_idx, kwargs.get("scaling"), kwargs.get("sliding_window")
    assert isinstance(layer, int)
    assert scale is None or isinstance(scale, float)
    assert window is None or isinstance(window, int)
    return step.attend(layer, (query[0], key[0], value[0]), scale, window)[None], None


def _write(
    key: torch.Tensor,
    value: torch.Tensor,
    kv: tuple[torch.Tensor, torch.Tensor],
    index: SlotIndex,
) -> None:
    """The `KvWriter` of every device."""
    for cache, rows in zip(kv, (key, value), strict=True):
        if isinstance(index, slice):
            cache[index] = rows.transpose(0, 1)
        else:
            cache.index_copy_(0, index, rows.transpose(0, 1))


def _prefill(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Chunk [query head, row, dim] over [token, KV head, dim]; causal where there is no mask.

    KV heads become the batch, and the query heads that share one its heads: K and V are then
    repeated by stride 0 instead of by copying, which no `enable_gqa` kernel with a mask does.
    """
    num_heads, num_rows, dim = query.shape
    num_tokens, num_kv_heads, _ = key.shape
    shape = (num_kv_heads, num_heads // num_kv_heads, num_tokens, dim)
    out = scaled_dot_product_attention(
        query.reshape(num_kv_heads, -1, num_rows, dim),
        key.transpose(0, 1)[:, None].expand(shape),
        value.transpose(0, 1)[:, None].expand(shape),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
    )
    return out.reshape(num_heads, num_rows, dim).transpose(0, 1)


def _decode(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """One token per entry [query head, entry, dim] over [entry × token, KV head, dim].

    Query heads that share a KV head become the rows of one attention: again nothing is repeated.
    """
    num_heads, num_entries, dim = query.shape
    num_kv_heads = key.shape[1]
    shape = (num_entries, -1, num_kv_heads, dim)
    out = scaled_dot_product_attention(
        query.transpose(0, 1).reshape(num_entries, num_kv_heads, -1, dim),
        key.view(shape).transpose(1, 2),
        value.view(shape).transpose(1, 2),
        attn_mask=mask,
        scale=scale,
    )
    return out.reshape(num_entries, num_heads, dim)


def _prefill_mask(span: PrefillSpan, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """Additive [row, token]; None for plain causal over the chunk alone."""
    if span.start == 0 and (window is None or span.stop <= window):
        return None
    if window not in span.masks:
        token = torch.arange(span.stop, device=like.device)
        row = torch.arange(span.start, span.stop, device=like.device)[:, None]
        span.masks[window] = _additive(token <= row, row - token, window, like)
    return span.masks[window]


def _decode_mask(group: DecodeGroup, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """Additive [entry, 1, 1, token]; None where every entry sees all its tokens."""
    if not group.padded and (window is None or group.max_length <= window):
        return None
    if window not in group.masks:
        token = torch.arange(group.max_length, device=like.device)
        length = group.lengths[:, None, None, None]
        group.masks[window] = _additive(token < length, length - 1 - token, window, like)
    return group.masks[window]


def _additive(
    visible: torch.Tensor, distance: torch.Tensor, window: int | None, like: torch.Tensor
) -> torch.Tensor:
    if window is not None:
        visible = visible & (distance < window)
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~visible, float("-inf")
    )
