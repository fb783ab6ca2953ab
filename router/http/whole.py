"""A whole answer, put together from its events."""

from collections import defaultdict
from typing import Any

from router.events import Accepted, Delta, Event, Finished
from router.http.asked import Asked
from router.http.shapes import Json, Piece, ending
from router.http.tally import Tally


class Collected:
    """Takes all events of one request's prompts."""

    def __init__(self, num_choices: int, *, keep: bool = True) -> None:
        """`num_choices` per prompt; what is not to be kept is only counted."""
        self.model = ""
        self.tally = Tally()
        self.pieces: defaultdict[int, Piece] = defaultdict(Piece)
        """By choice, counted over all prompts."""
        self._num_choices = num_choices
        self._keep = keep

    def choice_of(self, prompt: int, event: Delta | Finished) -> int:
        """An event's choice, counted over all prompts."""
        return prompt * self._num_choices + event.choice

    def take(self, prompt: int, event: Event) -> None:
        """One event of one prompt."""
        if isinstance(event, Accepted):
            self.model = event.model
            self.tally.take(prompt, -1, event)
            return
        choice = self.choice_of(prompt, event)
        self.tally.take(prompt, choice, event)
        if not self._keep:
            return
        piece = self.pieces[choice]
        if isinstance(event, Delta):
            piece.text += event.text
            piece.token_ids.extend(event.token_ids)
            piece.logprobs.extend(event.logprobs)
        else:
            piece.finished = event


def document(asked: Asked, answer: Collected) -> dict[str, Any]:
    """The reply that OpenAI's API gives."""
    choices = [_choice(asked, index, answer.pieces[index]) for index in sorted(answer.pieces)]
    frame = asked.frame(asked.shape.whole_object, answer.model, choices)
    return frame | {"usage": answer.tally.usage()}


def _choice(asked: Asked, index: int, piece: Piece) -> Json:
    prompt = asked.prompt_text(index // asked.num_choices)
    choice = {"index": index} | asked.shape.whole(piece, prompt) | ending(piece.finished)
    return choice | ({"token_ids": piece.token_ids} if asked.with_token_ids else {})
