"""One HTTP request, ready to be served: drafts for the orchestrator and the shape of the reply."""

from dataclasses import dataclass

from core.validation import Chat, RequestDraft
from router.http.shapes import Json, Shape
from text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one client wants."""

    drafts: tuple[RequestDraft, ...]
    """One per prompt, all with the same number of choices."""
    shape: Shape
    tokenizer: Tokenizer
    request_id: str
    created_s: int
    """Seconds since 1970."""
    with_usage: bool = False
    """A stream ends with its usage."""
    with_running_usage: bool = False
    """Every chunk of a stream has its choice's usage."""
    with_token_ids: bool = False

    @property
    def num_choices(self) -> int:
        """Per prompt."""
        return self.drafts[0].num_choices

    def prompt_text(self, index: int) -> str:
        """Of one prompt: of use where it is echoed."""
        prompt = self.drafts[index].prompt
        if isinstance(prompt, tuple):
            return self.tokenizer.decode(prompt)
        return "" if prompt is None or isinstance(prompt, Chat) else prompt

    def frame(self, object_name: str, model: str, choices: list[Json]) -> Json:
        """What every reply and every chunk is."""
        return {
            "id": f"{self.shape.id_prefix}{self.request_id}",
            "object": object_name,
            "created": self.created_s,
            "model": model,
            "choices": choices,
        }
