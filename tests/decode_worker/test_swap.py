"""Answers make room, wait in host memory and go on exactly where they were."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.blocks import BlockState
from core.request import StopParams
from decode_worker.job import Answer
from decode_worker.swap import SWAP, SwapState
from policy.fairness import Claim
from tests.decode_worker.rig import BLOCK_SIZE, Rig, expected, settle

FIRST, SECOND = tuple(range(1, 13)), tuple(range(31, 43))
"""Three blocks each."""


def swapped_blocks(rig: Rig) -> int:
    """In host memory."""
    return rig.blocks.allocator.counts()[BlockState.SWAPPED]


async def until_short(rig: Rig, answer: Answer) -> None:
    """Step until this answer is on its way out."""
    for _ in range(50):
        if rig.phase.swap.num_waiting:
            return
        await rig.step()
    raise AssertionError(f"{answer} was never short of memory")


async def test_the_later_one_waits_in_host_memory_and_both_end() -> None:
    async with Rig().running() as rig:
        first, second = rig.join(FIRST, 18), rig.join(SECOND, 18)
        await until_short(rig, second)
        assert rig.phase.load().num_swapped == 1
        assert swapped_blocks(rig) == len(second.held_block_ids)
        await rig.to_the_end()
        assert rig.ended == {first: None, second: None}
        for answer, prompt in ((first, FIRST), (second, SECOND)):
            assert answer.output_token_ids == expected(prompt, 18)
        swap = rig.phase.swap
        assert rig.phase.num_preempted == swap.num_taken_out == swap.num_brought_back >= 1
        assert swapped_blocks(rig) == 0


async def test_others_go_on_while_one_leaves() -> None:
    async with Rig().running() as rig:
        first, middle, last = (
            rig.join(FIRST, 9),
            rig.join((50,) * 5, 9),
            rig.join(SECOND[:9], 9),
        )
        await until_short(rig, last)
        num_said = len(middle.output_token_ids)
        await rig.step()
        assert len(middle.output_token_ids) > num_said, "it needs no block yet"
        assert not last.pins
        assert len(last.held_block_ids) == 3, "the copy is not made yet"
        await rig.to_the_end()
        assert rig.ended == dict.fromkeys((first, middle, last))
        assert all(rig.is_right(answer) for answer in rig.ended)


async def test_the_lowest_priority_leaves_and_comes_back_last() -> None:
    async with Rig(num_blocks=12).running() as rig:
        low = rig.join(FIRST, 18, priority=-1)
        others = [rig.join(SECOND, 18), rig.join(SECOND[::-1], 18)]
        await until_short(rig, low)
        assert not low.pins
        await rig.to_the_end()
        assert next(iter(rig.ended)) in others
        assert all(rig.is_right(answer) for answer in (low, *others))


@pytest.mark.parametrize("num_swap_blocks", [0, 3])
async def test_without_host_memory_it_is_ended(num_swap_blocks: int) -> None:
    async with Rig(num_swap_blocks=num_swap_blocks).running() as rig:
        first, second = rig.join(FIRST, 18), rig.join(SECOND, 18)
        await rig.to_the_end()
        assert rig.ended[first] is None
        assert rig.ended[second] is not None
        assert rig.is_right(second)
        assert rig.phase.num_preempted == 1
        assert rig.phase.swap.num_taken_out == 0


async def test_host_memory_is_bounded_over_all() -> None:
    async with Rig(num_blocks=9, num_swap_blocks=4).running() as rig:
        answers = [rig.join(prompt, 18) for prompt in (FIRST, SECOND, FIRST[::-1])]
        await rig.step()
        assert rig.phase.swap.num_waiting == 1
        assert swapped_blocks(rig) == 3
        # What comes is not enough for ever: the next has no room there.
        while answers[1] not in rig.ended:
            await rig.step()
            await rig.copies.run_one()
            rig.check()
        await rig.to_the_end()
        assert rig.phase.num_preempted >= 2


@pytest.mark.parametrize("num_copies", [0, 1], ids=["on its way out", "on its way back"])
async def test_a_copy_that_fails_ends_one_answer(num_copies: int) -> None:
    async with Rig().running() as rig:
        first, second = rig.join(FIRST, 18), rig.join(SECOND, 18)
        await until_short(rig, second)
        for _ in range(num_copies):
            await rig.copies.run_one()
        while not rig.copies.waiting:
            await rig.step()
        await rig.copies.run_one(OSError("broken"))
        assert getattr(rig.ended[second], "status", None) == "INTERNAL"
        await rig.to_the_end()
        assert rig.ended[first] is None
        assert swapped_blocks(rig) == 0


async def test_one_that_fills_all_memory_comes_back() -> None:
    async with Rig().running() as rig:
        prompt = tuple(range(1, 31))
        whole = rig.join(prompt, 3)
        begin = prompt[:28]
        shared = list(rig.blocks.share(whole.chain))
        sharing = replace(
            whole,
            work=replace(whole.work, prompt_token_ids=begin, stop=StopParams(max_tokens=5)),
            claim=Claim(tenant="", priority=1, arrived_at_s=9.0),
            block_ids=shared,
            num_kv_tokens=28,
            output_token_ids=expected(begin, 1),
            pins=[],
            chain=[],
        )
        rig.phase.join(sharing)
        await rig.step()
        assert rig.phase.swap.num_waiting == 1, "its last block is the only one that can be had"
        assert swapped_blocks(rig) == rig.num_blocks
        await rig.to_the_end()
        assert rig.ended == {sharing: None, whole: None}
        assert rig.is_right(whole)
        assert rig.is_right(sharing)


async def test_what_comes_back_is_found_again() -> None:
    async with Rig().running() as rig:
        first, second = rig.join(FIRST, 18), rig.join(SECOND, 18)
        await until_short(rig, second)
        await rig.to_the_end()
        assert rig.is_right(first)
        assert rig.is_right(second)
        hits = rig.blocks.hits(second.chain)
        assert hits.num_blocks == len(second.chain) == (len(SECOND) + 17) // BLOCK_SIZE


# --- ended at any moment ------------------------------------------------------------------------


async def leaving(rig: Rig) -> None:
    """Its blocks are being read."""
    await settle()
    assert rig.copies.waiting


async def out(rig: Rig) -> None:
    """Its blocks are others'."""
    assert await rig.copies.run_one()


async def returning(rig: Rig) -> None:
    """Its new blocks are being written."""
    await out(rig)
    while not rig.copies.waiting:
        await rig.step()


MOMENTS = [(leaving, SwapState.LEAVING), (out, SwapState.OUT), (returning, SwapState.RETURNING)]


@pytest.mark.parametrize(("reach", "state"), MOMENTS, ids=[state.value for _, state in MOMENTS])
async def test_a_cancel_frees_everything_and_nothing_under_a_copy(
    reach: Callable[[Rig], "asyncio.Future[None]"], state: SwapState
) -> None:
    async with Rig().running() as rig:
        rig.join(FIRST, 18)
        second = rig.join(SECOND, 18)
        await until_short(rig, second)
        await reach(rig)
        is_copying = bool(rig.copies.waiting)
        assert is_copying == (state is not SwapState.OUT)
        rig.phase.leave(second)
        rig.check()
        counts = rig.blocks.allocator.counts()
        assert bool(counts[BlockState.QUARANTINED]) == is_copying
        assert bool(counts[BlockState.SWAPPED]) == is_copying, "until the thread has ended"
        await rig.copies.run_one()
        counts = rig.blocks.allocator.counts()
        assert not counts[BlockState.QUARANTINED] + counts[BlockState.SWAPPED]
        await rig.to_the_end()
        assert second not in rig.ended


# --- laws ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """One request."""

    num_prompt_tokens: int
    max_tokens: int
    priority: int
    tenant: str


EVENTS = st.one_of(
    st.just("step"),
    st.just("copy"),
    st.tuples(st.just("cancel"), st.integers(0, 7), st.booleans()),
    st.builds(
        Arrival,
        num_prompt_tokens=st.integers(1, 14),
        max_tokens=st.integers(2, 18),
        priority=st.integers(-1, 1),
        tenant=st.sampled_from("ab"),
    ),
)


class Story:
    """A random history of one rig."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.going_on: list[Answer] = []
        self.cancelled: list[Answer] = []
        self._num_joined = 0

    async def happens(self, event: object) -> None:
        """One more event."""
        if event == "copy":
            await self.rig.copies.run_one()
        elif isinstance(event, Arrival):
            self._arrive(event)
        elif isinstance(event, tuple):
            await self._cancel(event[1], in_step=event[2])
        else:
            await self.rig.step()
        self.rig.check()

    def _arrive(self, arrival: Arrival) -> None:
        num_kv_tokens = arrival.num_prompt_tokens + arrival.max_tokens - 1
        fits_alone = num_kv_tokens <= self.rig.num_blocks * BLOCK_SIZE
        if not fits_alone or not self.rig.has_room(arrival.num_prompt_tokens):
            return
        self._num_joined += 1
        prompt = tuple(self._num_joined * 7 + i for i in range(arrival.num_prompt_tokens))
        answer = self.rig.join(
            prompt, arrival.max_tokens, priority=arrival.priority, tenant=arrival.tenant
        )
        self.going_on.append(answer)

    async def _cancel(self, index: int, *, in_step: bool) -> None:
        left = [a for a in self.going_on if a not in self.rig.ended]
        if not left:
            return
        answer = left[index % len(left)]

        def cancel() -> None:
            if answer not in self.rig.ended:
                self.going_on.remove(answer)
                self.cancelled.append(answer)
                self.rig.phase.leave(answer)

        if in_step:
            await self.rig.step(cancel)
        if answer in self.going_on:
            cancel()


@settings(max_examples=150)
@given(
    events=st.lists(EVENTS, max_size=60),
    num_blocks=st.integers(4, 10),
    num_swap_blocks=st.sampled_from([0, 4, 64]),
    max_running=st.integers(1, 6),
    window=st.sampled_from([None, 6]),
)
def test_laws(
    events: list[object],
    num_blocks: int,
    num_swap_blocks: int,
    max_running: int,
    window: int | None,
) -> None:
    """Everyone ends with exactly the right tokens, or is told; nothing is left anywhere."""

    async def tell() -> None:
        made = Rig(
            num_blocks=num_blocks,
            num_swap_blocks=num_swap_blocks,
            max_running=max_running,
            window=window,
        )
        async with made.running() as rig:
            story = Story(rig)
            for event in events:
                await story.happens(event)
            await rig.to_the_end()
            for answer in (*story.going_on, *story.cancelled):
                assert rig.is_right(answer)
            assert set(rig.ended) == set(story.going_on)
            if num_swap_blocks == 64:
                assert not any(rig.ended.values()), "nobody is ended while there is host memory"
            assert swapped_blocks(rig) == 0
            rig.check()

    asyncio.run(tell())


def test_the_table_is_total_and_ends() -> None:
    for state, event in SWAP.pairs():
        SWAP.look(state, event)
