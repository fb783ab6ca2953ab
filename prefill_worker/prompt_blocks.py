"""What prompts hold of the instance's blocks: shared, their own, and those they are computing."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.blocks import BlockState
from core.prefix import BlockHash
from prefill_worker.job import PrefillJob
from prefill_worker.scheduler import Start
from worker_host.blocks import MAX_GROWTH_RESERVE, Hits, InstanceBlocks
from worker_host.role import RoleBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beginning:
    """One way to start a prompt."""

    chain: Sequence[BlockHash]
    """Names of the blocks to share."""
    num_hit_tokens: int
    num_fresh: int
    """Blocks to allocate."""
    num_free_after: int
    """Once the chain is shared, and before the allocation."""


class PromptBlocks:
    """Finds, shares, allocates and names the blocks of prompts; owned by the event loop."""

    def __init__(self, blocks: InstanceBlocks, budget: Callable[[], RoleBudget]) -> None:
        self._blocks = blocks
        self._budget = budget
        self._held: Counter[int] = Counter()
        """By how many prompts, leased ones included."""
        self._computers: dict[BlockHash, PrefillJob] = {}
        """Who is about to compute the block of that name."""

    @property
    def num_held(self) -> int:
        """Blocks that prompts hold, each counted once."""
        return len(self._held)

    @property
    def num_in_flight(self) -> int:
        """Named blocks that started prompts have yet to compute."""
        return len(self._computers)

    def take(self, job: PrefillJob, num_others: int) -> Start:
        """Give it all blocks of its prompt, with those that are cached already computed.

        It is passed over while another prompt computes what it needs next: what follows will be a
        hit. That one never waits itself, so all of them end.
        """
        if job.waits_for in self._computers:
            return Start.PASSED_OVER
        hits = self._blocks.hits(job.chain)
        job.waits_for = next(iter(job.chain[hits.num_blocks : hits.num_blocks + 1]), None)
        if job.waits_for in self._computers:
            return Start.PASSED_OVER
        for beginning in self._beginnings(job, hits):
            # Before anything is shared: giving it up again would wake whoever waits for room.
            if self._has_room(beginning, num_others):
                self._begin(job, beginning)
                return Start.STARTED
        return Start.NO_ROOM

    def computed(self, job: PrefillJob, num_tokens: int) -> None:
        """Its first `num_tokens` tokens are in the cache: who waits for them finds them now."""
        size = self._blocks.block_size
        new = slice(job.num_computed // size, num_tokens // size)
        self._blocks.name(job.chain[new], job.block_ids[new])
        self._forget(job, job.chain[new])
        job.num_computed = num_tokens

    def leave_steps(self, job: PrefillJob) -> None:
        """It computes nothing any more; idempotent."""
        self._forget(job, job.chain[job.num_computed // self._blocks.block_size :])
        sources, job.copies = [source for source, _ in job.copies], ()
        self._give_up(sources)
        self._blocks.release(sources, BlockState.OWNED)

    def ended(self, job: PrefillJob) -> None:
        """The blocks of its table are released."""
        block_ids, job.block_ids = job.block_ids, ()
        self._give_up(block_ids)

    def _beginnings(self, job: PrefillJob, hits: Hits) -> Iterator[_Beginning]:
        """The best one first."""
        size = self._blocks.block_size
        # The last token is always computed: its logits give the first output token.
        num_hit_tokens = min(hits.num_blocks * size, job.num_tokens - 1)
        yield self._beginning(job, hits, num_hit_tokens)
        if num_hit_tokens % size:
            # The shared block that is copied is one more than the prompt has.
            fewer = self._blocks.hits(job.chain[: hits.num_blocks - 1])
            yield self._beginning(job, fewer, fewer.num_blocks * size)

    def _beginning(self, job: PrefillJob, hits: Hits, num_hit_tokens: int) -> _Beginning:
        num_read = num_hit_tokens // self._blocks.block_size
        return _Beginning(
            chain=job.chain[: hits.num_blocks],
            num_hit_tokens=num_hit_tokens,
            num_fresh=self._blocks.blocks_for(job.num_tokens) - num_read,
            num_free_after=hits.num_free_after,
        )

    def _has_room(self, beginning: _Beginning, num_others: int) -> bool:
        # Running growth and answers on their way back come first, and decode's floor stays; but a
        # prompt larger than the share may run alone.
        if self._blocks.has_waiting_answers:
            return False
        if beginning.num_fresh + min(num_others, MAX_GROWTH_RESERVE) > beginning.num_free_after:
            return False
        shared = self._blocks.cache.find(beginning.chain)
        num_new = beginning.num_fresh + sum(block_id not in self._held for block_id in shared)
        share = self._budget().max_prompt_blocks(self._blocks.num_blocks)
        return not self._held or self.num_held + num_new <= share

    def _begin(self, job: PrefillJob, beginning: _Beginning) -> None:
        shared = self._blocks.share(beginning.chain)
        fresh = self._blocks.allocate(beginning.num_fresh, BlockState.OWNED)
        num_read = beginning.num_hit_tokens // self._blocks.block_size
        job.block_ids = shared[:num_read] + fresh
        # At most one: it is full, and the last token of it is to be computed once more.
        job.copies = tuple(zip(shared[num_read:], fresh, strict=False))
        job.num_hit_tokens = job.num_computed = beginning.num_hit_tokens
        self._held.update(shared + fresh)
        for name in job.chain[num_read:]:
            self._computers.setdefault(name, job)
        self._count(job)

    def _count(self, job: PrefillJob) -> None:
        if job.chain:
            self._blocks.cache.num_queried_tokens += job.num_tokens
            self._blocks.cache.num_hit_tokens += job.num_hit_tokens

    def _forget(self, job: PrefillJob, names: Iterable[BlockHash]) -> None:
        for name in names:
            if self._computers.get(name) is job:
                del self._computers[name]

    def _give_up(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._held[block_id] -= 1
            if not self._held[block_id]:
                del self._held[block_id]
