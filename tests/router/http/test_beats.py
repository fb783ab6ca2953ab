"""A stream that waits is not silent."""

import asyncio
from pathlib import Path

from starlette.types import Message

from core.request import FinishReason
from core.validation import RequestDraft
from router.events import Accepted, Delta, Finished, RequestTiming
from router.http.asked import Asked
from router.http.serving import BEAT, StreamReply
from router.http.shapes import CompletionShape
from router.orchestrator import Write
from tests.router.script import BOUND_S
from text.tokenizer import Tokenizer


class SlowOrchestrator:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def serve(self, draft: RequestDraft, write: Write, **_: object) -> None:
        await write(Accepted("id", "model", 0, 1))
        await self.go.wait()
        await write(Delta(0, 0, (5,), "w5"))
        end = Finished(
            choice=0,
            reason=FinishReason.LENGTH,
            matched_stop="",
            num_output_tokens=1,
            timing=RequestTiming(),
        )
        await write(end)


async def test_silence_is_broken(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    asked = Asked(
        drafts=(RequestDraft(prompt=(1,)),),
        shape=CompletionShape(tokenizer, echo=False),
        tokenizer=tokenizer,
        request_id="id",
        created_s=0,
    )
    orchestrator, sent, beaten = SlowOrchestrator(), list[bytes](), asyncio.Event()

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if message.get("body") == BEAT:
            beaten.set()

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    reply = StreamReply(orchestrator, asked, beat_s=0.001)  # type: ignore[arg-type]
    async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
        group.create_task(reply({}, receive, send))
        await beaten.wait()
        orchestrator.go.set()
    assert sent[:2] == [b"", BEAT]
    assert sent[-1] == b"data: [DONE]\n\n"
