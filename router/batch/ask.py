"""One request of a batch to an OpenAI endpoint: patient where waiting helps."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from router.batch.lines import BatchLine

RETRIED = frozenset({408, 429, 499, 500, 502, 503, 504})
MAX_TRIES = 12
"""With the pauses below: four minutes of an endpoint that is full, or away."""
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 30.0
TIMEOUT_S = 3600.0
"""For one answer: it may wait long behind others, by its priority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The last word on one line."""

    status: int
    """Of HTTP; 0: there was no reply."""
    request_id: str
    body: dict[str, Any] | None
    error: str
    """Why there is no reply; empty when there is one."""

    @property
    def is_final(self) -> bool:
        """Asking again would change nothing."""
        return self.status != 0 and self.status not in RETRIED

    @property
    def is_good(self) -> bool:
        """An answer indeed."""
        return self.status == 200


async def ask(session: aiohttp.ClientSession, line: BatchLine, priority: int) -> Answer:
    """Try until there is a final answer, or MAX_TRIES times."""
    body = {"priority": priority} | line.body
    pause_s = FIRST_PAUSE_S
    for num_tries in range(1, MAX_TRIES + 1):
        answer, hint_s = await _try(session, line.url, body)
        if answer.is_final or num_tries == MAX_TRIES:
            break
        await asyncio.sleep(min(MAX_PAUSE_S, max(pause_s, hint_s)))
        pause_s *= 2
    return answer


async def _try(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> tuple[Answer, float]:
    """One try, and how long the server says to wait before another, in seconds."""
    try:
        async with session.post(url, json=body) as reply:
            document = json.loads(await reply.read())
            request_id = reply.headers.get("x-request-id", "")
            answer = Answer(status=reply.status, request_id=request_id, body=document, error="")
            return answer, _hint_s(reply.headers.get("retry-after", ""))
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        return Answer(status=0, request_id="", body=None, error=why), 0.0


def _hint_s(text: str) -> float:
    return float(text) if text.isdigit() else 0.0
