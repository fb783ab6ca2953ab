"""One rank's part of a step: its layers, over one micro-batch after the other."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from core.clock import Clock
from core.model_spec import ModelSpec
from core.parallel import RankPlace, split
from engine.attention import GatherBuffers, StepAttention
from engine.kernels import kernels_for
from engine.kv_cache import TORCH_DTYPES, KvCache
from engine.ranks.group import RankGroup
from engine.ranks.wire import Spent
from engine.step_plan import StepPlan


class StageModule(Protocol):
    """A rank's layers: ids [1, row] or hidden [1, row, hidden] in; hidden out, or, of the last
    stage, logits [sampled row, its columns of the vocabulary]."""

    def __call__(
        self,
        states: torch.Tensor,
        position_ids: torch.Tensor,
        sampled_rows: torch.Tensor,
        step: StepAttention,
    ) -> torch.Tensor: ...


class Stage:
    """One rank at work; each method blocks its thread."""

    def __init__(
        self,
        spec: ModelSpec,
        place: RankPlace,
        module: StageModule,
        kv_cache: KvCache,
        group: RankGroup,
        clock: Clock,
    ) -> None:
        self.spec = spec
        self._place = place
        self._module = module
        self._group = group
        self._clock = clock
        self._buffers = GatherBuffers()
        device = kv_cache.data.device.type
        self._kernels = kernels_for(device, spec.dtype)
        self.kv_cache = kv_cache

    def run(self, plans: Sequence[StepPlan]) -> tuple[torch.Tensor | None, tuple[Spent, ...]]:
        """Compute every micro-batch; KV of all of them is in the cache when it returns.

        Returns the leader's logits [sampled row, vocabulary], None on every other rank, and when
        each micro-batch was computed. Raises GroupBroken.
        """
        logits: list[torch.Tensor] = []
        sent: list[Callable[[], None]] = []
        spent = []
        for number, plan in enumerate(plans):
            states = self._states(plan, number)
            began_s = self._clock.now_s()
            out = self._compute(plan, states)
            spent.append(Spent(began_s, self._clock.now_s()))
            if self._place.is_last_stage:
                logits.append(out)
            else:
                # Not waited for here: the next stage computes it while we compute the next one.
                sent.append(self._group.send_hidden(out.contiguous(), number))
        for wait in sent:
            wait()
        return self._logits(plans, logits), tuple(spent)

    def _states(self, plan: StepPlan, number: int) -> torch.Tensor:
        if self._place.is_first_stage:
            return plan.input_ids
        num_rows = plan.input_ids.shape[1]
        hidden = self._empty(1, num_rows, self.spec.hidden_size)
        self._group.receive_hidden(hidden, number)
        return hidden

    def _compute(self, plan: StepPlan, states: torch.Tensor) -> torch.Tensor:
        step = StepAttention(self.kv_cache, plan, self._buffers, _ignore, self._kernels)
        return self._module(states, plan.position_ids, plan.sampled_rows, step)

    def _logits(
        self, plans: Sequence[StepPlan], parts: Sequence[torch.Tensor]
    ) -> torch.Tensor | None:
        """All rows in one message per rank, once: they are sampled together anyhow."""
        num_rows = sum(len(plan.sampled) for plan in plans)
        own = torch.cat(list(parts)) if parts else None
        if self._place.rank == 0:
            like = self._empty(num_rows, self.spec.vocab_size)
            return self._group.gather_logits(own, like) if num_rows else like
        if own is not None and num_rows:
            self._check_columns(own)
            self._group.send_logits(own)
        return None

    def _check_columns(self, own: torch.Tensor) -> None:
        columns = split(self.spec.vocab_size, self._place.layout.tp, self._place.tp_rank)
        assert own.shape[1] == len(columns), "the head's part of the vocabulary"

    def _empty(self, *shape: int) -> torch.Tensor:
        dtype = TORCH_DTYPES[self.spec.dtype]
        return torch.empty(shape, dtype=dtype, device=self.kv_cache.data.device)


def _ignore(_layer: int) -> None:
    """Layers are announced after the step, when every rank has written its part."""
