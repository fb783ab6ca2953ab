"""A whole answer in one reply."""

from collections import defaultdict
from typing import Any

from router.events import Accepted, Delta, Event
from router.http.asked import Asked, choice_of, note
from router.http.shapes import Json, Piece, ending
from router.http.tally import Tally


class WholeReply:
    """Takes all events of a request; then it is one document."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._tally = Tally()
        self._pieces: defaultdict[int, Piece] = defaultdict(Piece)
        self._model = ""

    async def take(self, prompt: int, event: Event) -> None:
        """One event of one prompt."""
        note(self._asked, self._tally, prompt, event)
        if isinstance(event, Accepted):
            self._model = event.model
            return
        piece = self._pieces[choice_of(self._asked, prompt, event)]
        if isinstance(event, Delta):
            piece.text += event.text
            piece.token_ids += event.token_ids
            piece.logprobs += event.logprobs
        else:
            piece.finished = event

    def document(self) -> dict[str, Any]:
        """The reply."""
        asked = self._asked
        choices = [self._choice(index) for index in sorted(self._pieces)]
        frame = asked.frame(asked.shape.whole_object, self._model, choices)
        return frame | {"usage": self._tally.usage()}

    def _choice(self, index: int) -> Json:
        asked, piece = self._asked, self._pieces[index]
        prompt = asked.prompt_text(index // asked.num_choices)
        choice = {"index": index} | asked.shape.whole(piece, prompt) | ending(piece.finished)
        return choice | ({"token_ids": piece.token_ids} if asked.with_token_ids else {})
