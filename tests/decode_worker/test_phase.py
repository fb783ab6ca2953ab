"""What the phase does with blocks besides growing: their names, and the window they leave."""

import pytest

from core.blocks import BlockState
from tests.decode_worker.rig import BLOCK_SIZE, Rig, expected

PROMPT = tuple(range(1, 23))
"""Five blocks and a half."""


def owned(rig: Rig) -> int:
    """Blocks of answers."""
    return rig.blocks.allocator.counts()[BlockState.OWNED]


def chain_length(rig: Rig, *token_ids: int) -> int:
    """Leading blocks of these tokens that can be found."""
    return rig.blocks.hits(rig.blocks.names("", token_ids)).num_blocks


async def test_full_blocks_are_found_as_soon_as_they_are_full() -> None:
    async with Rig(num_blocks=12).running() as rig:
        answer = rig.join(PROMPT, 12)
        said = expected(PROMPT, 12)
        assert chain_length(rig, *PROMPT, *said) == 5
        await rig.step()
        assert chain_length(rig, *PROMPT, *said) == 5
        await rig.step()
        assert chain_length(rig, *PROMPT, *said) == 6, "two tokens of the prompt and two said"
        await rig.to_the_end()
        # The last token's KV was never computed.
        assert chain_length(rig, *PROMPT, *said) == (len(PROMPT) + 11) // BLOCK_SIZE == 8
        assert rig.is_right(answer)
        assert chain_length(rig, *PROMPT[1:]) == 0
        assert rig.blocks.allocator.num_cached == 8


async def test_what_is_not_exact_has_no_name() -> None:
    """Neither the prompt's KV nor what was computed from it; not after a swap either."""
    async with Rig(num_blocks=12).running() as rig:
        answer = rig.join(PROMPT, 12, is_exact=False)
        await rig.to_the_end()
        said = expected(PROMPT, 12)
        assert chain_length(rig, *PROMPT, *said) == 0
        assert answer.chain == []
        assert rig.blocks.allocator.num_cached == 0


async def test_tenants_find_nothing_of_each_other() -> None:
    async with Rig(num_blocks=12).running() as rig:
        rig.join(PROMPT, 2, tenant="a")
        assert chain_length(rig, *PROMPT) == 0
        assert rig.blocks.hits(rig.blocks.names("a", PROMPT)).num_blocks == 5
        await rig.to_the_end()


@pytest.mark.parametrize("window", [1, 3, 4, 5, 8, 9, 100])
async def test_blocks_that_leave_the_window_are_free(window: int) -> None:
    async with Rig(num_blocks=12, window=window).running() as rig:
        answer = rig.join(PROMPT, 24)
        while answer not in rig.ended:
            first_seen = max(0, answer.num_kv_tokens + 1 - window)
            last = (answer.num_kv_tokens - 1) // BLOCK_SIZE
            assert owned(rig) == last + 1 - min(last + 1, first_seen // BLOCK_SIZE)
            assert answer.kv_start == first_seen // BLOCK_SIZE * BLOCK_SIZE
            await rig.step()
        assert answer.output_token_ids == expected(PROMPT, 24, window)


async def test_a_block_that_leaves_is_not_freed_under_the_running_step() -> None:
    async with Rig(num_blocks=12, window=4).running() as rig:
        first = rig.join(PROMPT, 24)
        assert owned(rig) == 2

        def join() -> None:
            rig.join(PROMPT[::-1], 24)
            counts = rig.blocks.allocator.counts()
            assert counts[BlockState.QUARANTINED] == 4
            assert counts[BlockState.OWNED] == 4

        await rig.step(join)
        await rig.to_the_end()
        assert rig.is_right(first)


async def test_a_window_makes_room_for_more() -> None:
    async with Rig(num_blocks=10, window=4).running() as rig:
        answers = [rig.join(PROMPT, 40) for _ in range(3)]
        await rig.to_the_end()
        assert rig.phase.num_preempted == 0
        assert all(rig.is_right(answer) for answer in answers)
