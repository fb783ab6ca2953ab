"""The step loop: one batch of both phases, blocks held until it returned, no polling."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from core.blocks import BlockState
from core.clock import MonotonicClock
from core.request import SamplingParams, StopParams
from engine.batch import BatchEntry, SampleSpec
from engine.block_allocator import BlockAllocator
from tests.worker_host.fake_engine import FakeRunner, expected_tokens
from worker_host.blocks import InstanceBlocks
from worker_host.holds import StepHolds
from worker_host.lag import LagMonitor
from worker_host.phase import PhaseLoad, PhaseWork, StepOutcome
from worker_host.steps import StepLoop

WAIT_S = 10.0


def entry(key: str, token_ids: tuple[int, ...], block_ids: tuple[int, ...]) -> BatchEntry:
    """A whole prompt."""
    spec = SampleSpec(
        sampling=SamplingParams(temperature=0),
        stop=StopParams(max_tokens=8),
        child_index=0,
        prompt_token_ids=token_ids,
        output_token_ids=(),
    )
    return BatchEntry(key=key, token_ids=token_ids, start=0, block_ids=block_ids, sample=spec)


@dataclass
class ListedPhase:
    """Hands out given entries, step by step."""

    steps: list[list[BatchEntry]] = field(default_factory=list)
    layers: frozenset[int] = frozenset()
    others: list[int] = field(default_factory=list)
    outcomes: list[StepOutcome] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    absorbed: asyncio.Event = field(default_factory=asyncio.Event)

    def schedule(self, num_others: int) -> PhaseWork:
        self.others.append(num_others)
        return PhaseWork(self.steps.pop(0) if self.steps else (), self.layers)

    def layer_written(self, layer: int) -> None:
        self.written.append(layer)

    def absorb(self, outcome: StepOutcome) -> None:
        self.outcomes.append(outcome)
        self.absorbed.set()

    def load(self) -> PhaseLoad:
        return PhaseLoad()


@dataclass
class Rig:
    """A loop over two listed phases."""

    runner: FakeRunner = field(default_factory=FakeRunner)
    first: ListedPhase = field(default_factory=ListedPhase)
    second: ListedPhase = field(default_factory=ListedPhase)
    blocks: InstanceBlocks = field(default_factory=lambda: InstanceBlocks(BlockAllocator(64, 4)))
    work: asyncio.Event = field(default_factory=asyncio.Event)
    num_turns: int = 0

    def __post_init__(self) -> None:
        self.holds = StepHolds(self.blocks)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[StepLoop]:
        """The loop, until the block ends."""
        with ThreadPoolExecutor(1) as executor:
            clock = MonotonicClock()
            steps = StepLoop(
                runner=self.runner,
                phases=(self.first, self.second),
                executor=executor,
                holds=self.holds,
                clock=clock,
                lag=LagMonitor(clock),
                work=self.work,
                on_turn=self._turned,
            )
            async with asyncio.TaskGroup() as group:
                task = group.create_task(steps.run())
                try:
                    yield steps
                finally:
                    task.cancel()

    def _turned(self) -> None:
        self.num_turns += 1


async def test_a_step_is_the_union_of_both_phases_in_order() -> None:
    rig = Rig()
    rig.first.steps = [[entry("a", (1, 2, 3), (0,)), entry("b", (4, 5), (1,))]]
    rig.second.steps = [[entry("c", (6,), (2,))]]
    async with rig.running(), asyncio.timeout(WAIT_S):
        await rig.second.absorbed.wait()
    assert rig.runner.batches == [["a", "b", "c"]]
    assert rig.first.others[0] == 0
    assert rig.second.others[0] == 2
    told = [token for phase in (rig.first, rig.second) for token in phase.outcomes[0].token_ids]
    assert told == [expected_tokens(prompt, 1)[0] for prompt in ((1, 2, 3), (4, 5), (6,))]


async def test_it_sleeps_while_there_is_no_work() -> None:
    rig = Rig()
    async with rig.running() as steps:
        for _ in range(100):
            await asyncio.sleep(0)
        assert rig.num_turns == 1
        rig.first.steps = [[entry("a", (1,), (0,))]]
        rig.work.set()
        async with asyncio.timeout(WAIT_S):
            await rig.first.absorbed.wait()
        assert steps.num_steps == 1
        assert not steps.is_running


async def test_blocks_of_a_running_step_are_freed_when_it_returned() -> None:
    rig = Rig()
    block_ids = rig.blocks.allocate(1, BlockState.OWNED)
    pin = rig.holds.hold(block_ids)
    rig.first.steps = [[entry("a", (1,), block_ids)]]
    async with rig.running(), asyncio.timeout(WAIT_S):
        with rig.runner.holding():
            await rig.runner.held()
            rig.blocks.release(block_ids, BlockState.OWNED)
            rig.holds.let_go([pin])
            assert rig.blocks.allocator.counts()[BlockState.QUARANTINED] == 1
        await rig.first.absorbed.wait()
    assert rig.blocks.num_free == 64


async def test_only_wanted_layers_wake_the_loop() -> None:
    rig = Rig()
    rig.second.layers = frozenset({1, 3})
    rig.second.steps = [[entry("a", (1,), (0,))]]
    async with rig.running(), asyncio.timeout(WAIT_S):
        with rig.runner.holding(after_layer=2):
            await rig.runner.held()
            assert rig.second.written == [1], "while the step still computes"
        await rig.second.absorbed.wait()
    assert rig.second.written == [1, 3]


async def test_a_failed_step_ends_the_loop() -> None:
    rig = Rig()
    rig.runner.error = ArithmeticError("broken")
    rig.first.steps = [[entry("a", (1,), (0,))]]
    with pytest.raises(ExceptionGroup) as raised:
        async with rig.running(), asyncio.timeout(WAIT_S):
            await rig.first.absorbed.wait()
    assert raised.group_contains(ArithmeticError)
