"""What one HTTP request has used: `usage`, over all its prompts and choices."""

from collections import Counter
from typing import Any

from router.events import Accepted, Delta, Event, Finished


class Tally:
    """Fed with every event."""

    def __init__(self) -> None:
        self._prompts: dict[int, int] = {}
        self._outputs: Counter[int] = Counter()
        self._cached: dict[int, int] = {}

    def take(self, prompt: int, choice: int, event: Event) -> None:
        """`prompt` is its index in the request, `choice` the one in the reply."""
        if isinstance(event, Accepted):
            self._prompts[prompt] = event.num_prompt_tokens
        elif isinstance(event, Delta):
            self._outputs[choice] += len(event.token_ids)
        elif isinstance(event, Finished):
            told = event.timing.prefill
            # Of several choices the first to be prefilled tells what was there already: the
            # others find what it computed.
            seen = told.num_hit_tokens + told.num_fetched_tokens
            self._cached[prompt] = min(seen, self._cached.get(prompt, seen))

    def usage(self) -> dict[str, Any]:
        """Of the whole request, at its end."""
        usage = _usage(sum(self._prompts.values()), sum(self._outputs.values()))
        cached = sum(self._cached.values())
        return usage | {"prompt_tokens_details": {"cached_tokens": cached}}

    def so_far(self, prompt: int, choice: int) -> dict[str, Any]:
        """Of one choice, while it runs."""
        return _usage(self._prompts.get(prompt, 0), self._outputs[choice])


def _usage(num_prompt_tokens: int, num_output_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }
