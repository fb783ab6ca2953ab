"""Decode as the step loop sees it: every running answer gets one token per step."""

from typing import Protocol

from core.blocks import BlockState
from core.errors import BatonError
from decode_worker.job import Answer
from decode_worker.parts import DecodeParts
from decode_worker.scheduler import DecodeScheduler
from decode_worker.swap import Swap
from policy.fairness import ServedTokens
from worker_host.phase import PhaseLoad, PhaseWork, StepOutcome


class Reporter(Protocol):
    """Who is told what became of answers."""

    def sampled(self, answer: Answer, token_id: int, outcome: StepOutcome) -> None:
        """A running answer has one more token; it may be ended now."""
        ...

    def preempted(self, answer: Answer) -> None:
        """An answer was taken out of the batch to make room; it must be ended now."""
        ...

    def lost(self, answer: Answer, error: BatonError) -> None:
        """An answer's KV is lost; it must be ended now."""
        ...

    def step_absorbed(self) -> None:
        """All tokens of a step were told."""
        ...

    def scheduled(self) -> None:
        """All answers have the blocks that they get now."""
        ...

    @property
    def num_waiting(self) -> int:
        """Handoffs that have not committed."""
        ...

    @property
    def num_reserving(self) -> int:
        """Of them, those that wait for room."""
        ...

    @property
    def has_reserved(self) -> bool:
        """Some of them have room."""
        ...


class DecodePhase:
    """The running batch and its blocks."""

    def __init__(self, parts: DecodeParts, served: ServedTokens, reporter: Reporter) -> None:
        self._blocks = parts.blocks
        self._holds = parts.holds
        self._clock = parts.clock
        self._window_tokens = parts.model.window_tokens
        self._scheduler: DecodeScheduler[Answer] = DecodeScheduler(
            parts.worker.max_running, ageing_s=parts.worker.ageing_s, served=served
        )
        self._work = parts.work
        self._reporter = reporter
        self._batch: list[Answer] = []
        self.swap = Swap(parts, served, self)
        self.num_preempted = 0
        """Since the start, swapped or ended."""

    def join(self, answer: Answer) -> None:
        """Its KV is verified: it decodes from the next step on."""
        self.returned(answer)
        self._name_full_blocks(answer)
        self._leave_window(answer)

    def returned(self, answer: Answer) -> None:
        """See swap.Batch."""
        answer.pins.append(self._holds.hold(answer.held_block_ids))
        self._blocks.name(answer.chain[answer.num_gone_blocks :], answer.held_block_ids)
        self._scheduler.join(answer)
        self._work.set()

    def lost(self, answer: Answer, error: BatonError) -> None:
        """See swap.Batch."""
        self._reporter.lost(answer, error)

    def leave(self, answer: Answer) -> None:
        """It has ended: its blocks return, at the latest with the running step or copy."""
        self._scheduler.leave(answer)
        self._blocks.release(answer.give_up_blocks(), BlockState.OWNED)
        self._let_go(answer)
        self.swap.leave(answer)
        self._work.set()

    @property
    def num_growing(self) -> int:
        """Answers in the batch, or with blocks on their way back to it."""
        return len(self._scheduler.running) + self.swap.num_returning

    @property
    def has_swapped(self) -> bool:
        """See reservations.Running."""
        return self.swap.num_waiting > 0

    @property
    def is_short(self) -> bool:
        """See reservations.Running."""
        if not self.has_swapped:
            return False
        # Who has room already commits, runs and ends, or is lost in a bounded time.
        num_here = self._scheduler.num_answers + self.swap.num_returning
        return self._reporter.has_reserved or num_here > 0

    def schedule(self, num_others: int) -> PhaseWork:
        """One token of every running answer; what blocks are left bring others back."""
        del num_others  # decode comes first
        now_s = self._clock.now_s()
        self._batch = self._scheduler.schedule(now_s, self)
        self.swap.bring_back(
            now_s,
            num_running=len(self._scheduler.running),
            num_places=self._scheduler.num_places,
        )
        self._reporter.scheduled()
        self._blocks.has_waiting_answers = self.has_swapped
        return PhaseWork([answer.entry() for answer in self._batch])

    def layer_written(self, layer: int) -> None:
        """Nobody reads decode's KV."""

    def absorb(self, outcome: StepOutcome) -> None:
        """Tell the tokens of all answers that have not ended meanwhile."""
        for answer, (token_id, logprobs) in zip(self._batch, outcome.samples, strict=True):
            if answer.block_ids and token_id is not None:
                answer.num_kv_tokens += 1
                answer.output_token_ids.append(token_id)
                answer.logprobs = logprobs
                self._block_filled(answer)
                self._reporter.sampled(answer, token_id, outcome)
        self._batch = []
        self._reporter.step_absorbed()

    def load(self) -> PhaseLoad:
        """Running answers, and handoffs on their way in."""
        running = self._scheduler.running
        num_waiting = self._reporter.num_waiting
        return PhaseLoad(
            num_incoming=num_waiting,
            num_decoding=self._scheduler.num_answers,
            num_context_tokens=sum(answer.num_kv_tokens for answer in running),
            num_answers=self._scheduler.num_answers + self.swap.num_parcels,
            num_swapped=self.swap.num_waiting + self.swap.num_returning,
        )

    # --- what the scheduler asks ------------------------------------------------------------

    @property
    def num_coming(self) -> int:
        """See scheduler.Memory."""
        return self.swap.num_coming

    @property
    def is_stuck(self) -> bool:
        """See scheduler.Memory. Prompts of this instance are leased, perhaps to an instance whose
        own wait for room here; no handoff has room already, and so none will join and end."""
        counts = self._blocks.allocator.counts()
        is_coming = self._reporter.has_reserved or self.swap.num_returning
        return bool(counts[BlockState.LEASED] and self._reporter.num_reserving and not is_coming)

    def grow(self, answer: Answer) -> bool:
        """See scheduler.Memory."""
        if not self._blocks.num_free:
            return False
        block_ids = self._blocks.allocate(1, BlockState.OWNED)
        answer.pins.append(self._holds.hold(block_ids))
        answer.block_ids.extend(block_ids)
        return True

    def preempt(self, answer: Answer) -> None:
        """See scheduler.Memory."""
        self.num_preempted += 1
        if self.swap.fits(answer):
            self._let_go(answer)
            self.swap.take_out(answer)
        else:
            self._reporter.preempted(answer)

    # --- inside -----------------------------------------------------------------------------

    def _block_filled(self, answer: Answer) -> None:
        if answer.num_kv_tokens % answer.block_size == 0:
            self._name_full_blocks(answer)
        self._leave_window(answer)

    def _name_full_blocks(self, answer: Answer) -> None:
        """Whoever begins with the same tokens finds them; only what others would compute too."""
        if not answer.is_exact:
            return
        num_named = len(answer.chain)
        names = self._blocks.names(answer.work.tenant, answer.kv_token_ids, answer.chain)
        answer.chain += names
        self._blocks.name(names, answer.block_ids[num_named:])

    def _leave_window(self, answer: Answer) -> None:
        """Give up the blocks that the next token, and so all later ones, does not see."""
        if self._window_tokens is None:
            return
        num_unseen = max(0, answer.num_kv_tokens + 1 - self._window_tokens)
        if (num_gone := num_unseen // answer.block_size) <= answer.num_gone_blocks:
            return
        self._blocks.release(answer.give_up_first(num_gone), BlockState.OWNED)
        # Pins end whole: the rest is held anew.
        pins, answer.pins = answer.pins, [self._holds.hold(answer.held_block_ids)]
        self._holds.let_go(pins)

    def _let_go(self, answer: Answer) -> None:
        pins, answer.pins = answer.pins, []
        self._holds.let_go(pins)
