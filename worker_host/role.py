"""What a role is: how many prompt tokens a step may hold, and how many blocks prompts may take."""

from dataclasses import dataclass

from core.config import WorkerConfig
from core.member import Role

MIN_CHUNK_TOKENS = 4
"""Prompts go on beside whatever decodes: whoever waits for an answer must not wait for ever."""


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
        prompt_share=0.5,
    )
