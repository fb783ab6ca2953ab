"""What a role is: how many prompt tokens a step may hold, and how many blocks prompts may take."""

import asyncio
import logging
from dataclasses import dataclass, replace

from core.config import WorkerConfig
from core.member import Member, Role
from core.waiting import wait_at_most

logger = logging.getLogger(__name__)

MIN_CHUNK_TOKENS = 4
"""Prompts go on beside whatever decodes: whoever waits for an answer must not wait for ever."""

SHARE_BESIDE_ANSWERS = 0.5
"""Of the blocks, for prompts where answers are written too. Prompts need theirs for a moment only,
answers for as long as they grow."""
INSTANCE_ROLES = (Role.PREFILL, Role.DECODE, Role.MIXED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleBudget:
    """An instance's budget between the phases."""

    alone_step_tokens: int
    """Prompt tokens of a step in which nothing decodes."""
    mixed_step_tokens: int
    """All tokens of a step that running answers wait for: one for each of them, prompts fill the
    rest (Sarathi-Serve, OSDI '24, section 4)."""
    prompt_share: float
    """0–1: of the blocks, what prompts and their leases may hold. The rest is decode's floor: two
    instances full of leases for each other would wait for each other."""

    def step_tokens(self, num_decoding: int) -> int:
        """Prompt tokens of a step beside `num_decoding` running answers."""
        if not num_decoding:
            return self.alone_step_tokens
        return max(MIN_CHUNK_TOKENS, self.mixed_step_tokens - num_decoding)

    def max_prompt_blocks(self, num_blocks: int) -> int:
        """Blocks that prompts and leases may hold of `num_blocks`; at least one."""
        return max(1, int(num_blocks * self.prompt_share))


def budget_of(role: Role, config: WorkerConfig) -> RoleBudget:
    """The budget of an instance of this role."""
    if role is Role.PREFILL:
        return RoleBudget(
            alone_step_tokens=config.prefill_step_tokens,
            mixed_step_tokens=config.prefill_step_tokens,
            prompt_share=1.0,
        )
    return RoleBudget(
        alone_step_tokens=config.prefill_step_tokens,
        mixed_step_tokens=min(config.mixed_step_tokens, config.prefill_step_tokens),
        prompt_share=SHARE_BESIDE_ANSWERS,
    )


class Post:
    """The role that an instance has now, and what follows from it; owned by the event loop."""

    def __init__(self, member: Member, config: WorkerConfig, *, work: asyncio.Event) -> None:
        """`member` is who it is at its start; `work` wakes the step loop."""
        self._member = member
        self._config = config
        self._work = work
        self._changed = asyncio.Event()
        self._budget = budget_of(member.role, config)

    @property
    def member(self) -> Member:
        """As the others are to know it now."""
        return self._member

    def budget(self, *, has_answers: bool) -> RoleBudget:
        """For the next step. Whatever its role, answers that are here keep decode's floor: those of
        an earlier role have to find room, or prompts that wait for theirs would wait for them."""
        if not has_answers:
            return self._budget
        share = min(self._budget.prompt_share, SHARE_BESIDE_ANSWERS)
        return replace(self._budget, prompt_share=share)

    def change(self, role: Role) -> Role:
        """Take another of INSTANCE_ROLES from the next step on; what runs goes on. Returns the one
        before."""
        assert role in INSTANCE_ROLES, "whoever asks was told so"
        previous = self._member.role
        if role is not previous:
            logger.info("role changed from=%s to=%s", previous, role)
            self._member = replace(self._member, role=role)
            self._budget = budget_of(role, self._config)
            self._changed.set()
            # A prompt that waits may fit into the new share.
            self._work.set()
        return previous

    async def await_change(self, timeout_s: float) -> None:
        """Return when the role has changed since this last returned, or after so many seconds; for
        the one who tells the others."""
        await wait_at_most(self._changed, timeout_s)
        self._changed.clear()
