"""A decode phase over the fake engine, whose steps and copies happen when a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core.blocks import BlockState, leak_report
from core.clock import ManualClock
from core.config import HandoffConfig, WorkerConfig
from core.errors import BatonError
from core.kv_layout import KvLayout
from core.load import Load
from core.prefix import KEY_BYTES
from core.work import Peer
from decode_worker.job import Answer
from decode_worker.parts import DecodeParts
from decode_worker.phase import DecodePhase
from engine.batch import BatchEntry
from kv_transfer.fetch import FetchResult
from kv_transfer.sink import Sink
from policy.fairness import Claim, ServedTokens
from tests.deploy.instances import work
from tests.worker_host.fake_engine import FAKE_SPEC, FINGERPRINT, FakeRunner, kv_of, token_of
from worker_host.blocks import InstanceBlocks
from worker_host.door import Door
from worker_host.holds import StepHolds
from worker_host.phase import StepOutcome

BLOCK_SIZE = 4
LAYERS = range(FAKE_SPEC.num_layers)


def expected(prompt: Sequence[int], num_tokens: int, window: int | None = None) -> list[int]:
    """What a fake model that sees so many last tokens says to a prompt."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        seen = range(max(0, len(tokens) - window) if window else 0, len(tokens))
        kv = np.stack([kv_of(seen, tokens[seen.start :], layer) for layer in LAYERS])
        tokens.append(token_of(kv))
    return tokens[len(prompt) :]


class WindowRunner(FakeRunner):
    """Sees the last tokens only."""

    def __init__(self, num_blocks: int, window: int | None) -> None:
        super().__init__(num_blocks, BLOCK_SIZE)
        self._window = window

    def _sample(self, entry: BatchEntry) -> int | None:
        if self._window is None or entry.sample is None:
            return super()._sample(entry)
        seen = range(max(0, entry.stop - self._window), entry.stop)
        assert entry.kv_start <= seen.start, "what it sees is there"
        return token_of(self.store.data[:, :, self.store.slots(entry.block_ids, seen)])


class HeldCopies(Executor):
    """Copies are made when a test says."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Keep it."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    async def run_one(self, error: Exception | None = None) -> bool:
        """Make the oldest copy, or fail it; whether there was one."""
        await settle()
        if not self.waiting:
            return False
        future, copy = self.waiting.pop(0)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(copy())
        await settle()
        return True


class NoFetches:
    """Nothing comes in over the wire."""

    async def run(
        self,
        sink: Sink,
        peer: Peer,
        *,
        num_tokens: int,
        reserve: Callable[[Sink], Awaitable[None]],
    ) -> FetchResult:
        """Never called."""
        raise AssertionError(sink, peer, num_tokens, reserve)


async def settle() -> None:
    """Let every callback run that is planned by now."""
    for _ in range(6):
        await asyncio.sleep(0)


@dataclass(kw_only=True)
class Rig:
    """A phase, and what became of its answers."""

    num_blocks: int = 8
    num_swap_blocks: int = 64
    max_running: int = 8
    window: int | None = None
    clock: ManualClock = field(default_factory=ManualClock)
    copies: HeldCopies = field(default_factory=HeldCopies)
    ended: dict[Answer, BatonError | None] = field(default_factory=dict)
    """None: well. Not in it: cancelled, or going on."""

    def __post_init__(self) -> None:
        self.runner = WindowRunner(self.num_blocks, self.window)
        self.blocks = InstanceBlocks.cached(self.num_blocks, BLOCK_SIZE, bytes(KEY_BYTES))
        self.holds = StepHolds(self.blocks)
        self.work = asyncio.Event()
        self.blocks.on_freed(self.work.set)
        model = replace(FAKE_SPEC, window_tokens=self.window)
        parts = DecodeParts(
            blocks=self.blocks,
            holds=self.holds,
            layout=KvLayout.of(model, BLOCK_SIZE),
            model=model,
            store=self.runner.store,
            copies=self.copies,
            num_swap_blocks=self.num_swap_blocks,
            door=Door(FINGERPRINT, self.num_blocks, BLOCK_SIZE),
            clock=self.clock,
            work=self.work,
            fetches=NoFetches(),
            load=Load,
            worker=WorkerConfig(max_running=self.max_running),
            handoff=HandoffConfig(),
        )
        self.phase = DecodePhase(parts, ServedTokens(), self)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Rig"]:
        """With its copies' owner; nothing may be left in the end."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.phase.swap.run())
            try:
                yield self
            finally:
                # Whoever owns a copy waits for it, even when a test has failed.
                while await self.copies.run_one():
                    pass
                task.cancel()

    # --- what tests do ----------------------------------------------------------------------

    def has_room(self, num_prompt_tokens: int) -> bool:
        """As a handoff would ask."""
        num_needed = self.blocks.blocks_for(num_prompt_tokens) + self.phase.num_growing
        return not self.phase.has_swapped and num_needed <= self.blocks.num_free

    def join(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        *,
        priority: int = 0,
        tenant: str = "",
        is_exact: bool = True,
    ) -> Answer:
        """As if its KV had come."""
        block_ids = self.blocks.allocate(self.blocks.blocks_for(len(prompt)), BlockState.OWNED)
        slots = self.runner.store.slots(block_ids, range(len(prompt)))
        for layer in LAYERS:
            self.runner.store.data[layer][:, slots] = kv_of(range(len(prompt)), prompt, layer)
        answer = Answer(
            work=replace(work(prompt, max_tokens=max_tokens), tenant=tenant),
            claim=Claim(tenant=tenant, priority=priority, arrived_at_s=self.clock.now_s()),
            block_ids=list(block_ids),
            block_size=BLOCK_SIZE,
            num_kv_tokens=len(prompt),
            output_token_ids=expected(prompt, 1, self.window),
            logprobs=None,
            committed_at_s=0.0,
            timing=None,
            is_exact=is_exact,
        )
        self.phase.join(answer)
        self.clock.advance(1.0)
        return answer

    async def step(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """One step, if there is anything to compute. Returns how many took part."""
        await settle()
        self.work.clear()
        entries = self.phase.schedule(0).entries
        if entries:
            self.holds.step_begins()
            meanwhile()
            result = self.runner.step(entries)
            self.phase.absorb(
                StepOutcome(token_ids=result.token_ids, began_at_s=0.0, ended_at_s=0.0)
            )
            self.holds.step_returned()
        self.check()
        return len(entries)

    async def to_the_end(self, max_turns: int = 500) -> None:
        """Steps and copies, until the step loop would sleep for ever."""
        for _ in range(max_turns):
            num_entries = await self.step()
            if not (await self.copies.run_one()) and not num_entries and not self.work.is_set():
                break
        assert self.phase.load().num_known == 0, "somebody waits for ever"

    def check(self) -> None:
        """The books are right; and nothing is held when nobody is here."""
        self.blocks.allocator.check()
        assert self.blocks.allocator.counts()[BlockState.SWAPPED] <= self.num_swap_blocks
        if not self.phase.load().num_known:
            assert leak_report(self.blocks.allocator.counts(), self.num_blocks) is None

    def is_right(self, answer: Answer) -> bool:
        """It has said what it should have so far, and what is kept of it is what its name says."""
        said = answer.output_token_ids
        kept_in = [self.blocks.cache.find([name]) for name in answer.chain]
        for number, block_id in ((n, b) for n, found in enumerate(kept_in) for b in found):
            positions = range(number * BLOCK_SIZE, (number + 1) * BLOCK_SIZE)
            token_ids = answer.kv_token_ids[positions.start : positions.stop]
            slots = self.runner.store.slots([block_id], range(BLOCK_SIZE))
            for layer in LAYERS:
                kept = self.runner.store.data[layer][:, slots]
                assert np.array_equal(kept, kv_of(positions, token_ids, layer))
        return said == expected(answer.work.prompt_token_ids, len(said), self.window)

    # --- what the phase tells ---------------------------------------------------------------

    num_waiting: int = 0
    num_reserving: int = 0
    has_reserved: bool = False

    def sampled(self, answer: Answer, token_id: int, outcome: StepOutcome) -> None:
        """See decode_worker.phase.Reporter."""
        del token_id, outcome
        if len(answer.output_token_ids) == answer.work.stop.max_tokens:
            self.ended[answer] = None
            self.phase.leave(answer)

    def preempted(self, answer: Answer) -> None:
        """See decode_worker.phase.Reporter."""
        self.lost(answer, BatonError("preempted"))

    def lost(self, answer: Answer, error: BatonError) -> None:
        """See decode_worker.phase.Reporter."""
        self.ended[answer] = error
        self.phase.leave(answer)

    def step_absorbed(self) -> None:
        """See decode_worker.phase.Reporter."""

    def scheduled(self) -> None:
        """See decode_worker.phase.Reporter."""
