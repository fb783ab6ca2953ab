"""Who may come in: refuses work before anything is allocated for it."""

import asyncio
from collections.abc import Callable

from core.errors import Draining, FieldViolation, Incompatible, InvalidRequest, Unsupported
from core.ids import Fingerprint
from core.request import Grammar
from core.work import WorkRequest


class Door:
    """Open until the instance drains."""

    def __init__(
        self,
        fingerprint: Fingerprint,
        num_blocks: int,
        block_size: int,
        check_grammar: Callable[[Grammar], None] | None = None,
    ) -> None:
        """`check_grammar` raises InvalidRequest for what the engine could not follow."""
        self._fingerprint = fingerprint
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._check_grammar = check_grammar
        self.is_draining = False

    def check(self, work: WorkRequest, *, num_kv_tokens: int) -> None:
        """Refuse what cannot be served here. `num_kv_tokens` is the most the request ever needs."""
        if self.is_draining:
            raise Draining("this instance drains and takes no new work")
        if work.fingerprint != self._fingerprint:
            raise Incompatible(
                f"fingerprint {work.fingerprint[:16]} asked for, here is {self._fingerprint[:16]}"
            )
        num_needed = -(-num_kv_tokens // self._block_size)
        if num_needed > self._num_blocks:
            size = f"{num_kv_tokens} tokens need {num_needed} KV blocks of {self._block_size}"
            here = f"this instance has {self._num_blocks}"
            raise InvalidRequest((FieldViolation("prompt_token_ids", f"{size}, {here}"),))

    async def check_grammar(self, work: WorkRequest) -> None:
        """Refuse a grammar that cannot be followed here. In a thread: to compile one takes
        milliseconds, and for a monster half a second."""
        if (grammar := work.sampling.grammar) is None:
            return
        if self._check_grammar is None:
            raise Unsupported("this instance serves no grammars")
        await asyncio.to_thread(self._check_grammar, grammar)
