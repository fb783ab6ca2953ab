"""The forward pass of an instance of several ranks, as its leader sees it."""

from collections.abc import Iterator, Sequence

import torch

from core.model_spec import ModelSpec
from core.parallel import ParallelLayout, RankPlace
from engine.batch import BatchEntry
from engine.forward import Logits, OnLayer
from engine.ranks.crew import Crew
from engine.ranks.errors import ChannelClosed, ChannelStalled, GroupBroken
from engine.ranks.pipeline import Cut, cut, micro_batches
from engine.ranks.shared_kv import SpreadKv
from engine.ranks.spans import Span
from engine.ranks.spec import DEVICE
from engine.ranks.stage import Stage
from engine.ranks.wire import Answer, Step, encode_step
from engine.step_plan import StepPlan, plan_step

BROKEN = (ChannelClosed, ChannelStalled, GroupBroken)
"""What a lost rank looks like from here."""


class RankedForward:
    """Implements `Forward` over its own part of the model and the other ranks.

    One thread computes; `close` ends the other ranks. A rank that dies ends them all at once: a
    step under way and every later one raise RankLost.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layout: ParallelLayout,
        stage: Stage,
        crew: Crew,
        kv_cache: SpreadKv,
        scratch_blocks: range,
    ) -> None:
        self.spec = spec
        self.layout = layout
        self.kv_cache = kv_cache
        self.block_size = kv_cache.block_size
        self.scratch_blocks = scratch_blocks
        self.timeline: tuple[Span, ...] = ()
        """Of the last step: when each rank computed each micro-batch."""
        self._stage = stage
        self._crew = crew

    @property
    def pids(self) -> dict[int, int]:
        """The process of each rank but the leader."""
        return self._crew.pids

    def run(self, entries: Sequence[BatchEntry], on_layer: OnLayer | None) -> Logits:
        """Compute one batch; K and V are in the caches of all ranks when it returns.

        `on_layer` is called for all layers in order at the end of the step: before, only the
        ranks that hold a layer know whether it is written.

        Raises:
            ValueError: entries that no step can have; nothing was computed.
            RankLost: a rank died or does not answer, now or in an earlier step.
        """
        self._crew.check()
        pieces = cut([len(entry.token_ids) for entry in entries], self.layout.pp)
        batches = micro_batches(entries, pieces)
        # A mistake of the caller shows here, before any rank has heard of the step.
        plans = [plan_step(batch, self.block_size, DEVICE) for batch in batches]
        frame = encode_step(Step(entries, pieces))
        if copies := [pair for entry in entries for pair in entry.copies]:
            self._stage.kv_cache.copy_blocks(copies)
        logits = self._run(plans, frame)
        for layer in range(self.spec.num_layers) if on_layer else ():
            assert on_layer is not None
            on_layer(layer)
        return Logits(logits, _sampled(plans, pieces))

    def close(self) -> None:
        """End the other ranks; no process is left when this returns."""
        self._crew.close()

    def _run(self, plans: Sequence[StepPlan], frame: bytes) -> torch.Tensor:
        try:
            self._crew.send(frame)
            logits, spent = self._stage.run(plans)
            answers = self._crew.answers()
            if errors := [answer.error for answer in answers if answer.error is not None]:
                raise GroupBroken("; ".join(errors))
        except BROKEN as error:
            raise self._crew.explain(error) from error
        except BaseException as error:
            # The others are in the middle of a step that nobody will end.
            self._crew.lose(f"the leader's own step failed: {type(error).__name__}: {error}")
            raise
        assert logits is not None, "this is the leader's stage"
        self.timeline = tuple(_spans([Answer(spent), *answers], self.layout))
        return logits


def _sampled(plans: Sequence[StepPlan], pieces: Cut) -> tuple[int, ...]:
    """Entries of the step, in the order of the rows of logits."""
    return tuple(
        batch[i].entry for plan, batch in zip(plans, pieces, strict=True) for i in plan.sampled
    )


def _spans(answers: Sequence[Answer], layout: ParallelLayout) -> Iterator[Span]:
    for rank, answer in enumerate(answers):
        stage = RankPlace(layout=layout, rank=rank).stage
        for micro_batch, (began_s, ended_s) in enumerate(answer.spent):
            yield Span(rank, stage, micro_batch, began_s, ended_s)
