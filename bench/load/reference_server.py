"""A server of OpenAI's completions whose every delay is known: what a load generator is tested on.

`python -m bench.load.reference_server --spec-json …`; it stops with whoever started it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from core.clock import MonotonicClock
from rpc.process import run_process

MODEL = "reference"
SHUTDOWN_S = 2.0
"""Answers under way when it stops have no reader any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSpec:
    """Its delays, from the receipt of a request on."""

    ttft_s: float
    gap_s: float
    """Between two chunks, on a schedule fixed at the receipt: delays do not add up."""
    chunk_tokens: int = 1
    """In each chunk."""
    max_running: int = 1_000_000
    """Answers at a time; the delays of those that wait count from their turn on."""

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "ReferenceSpec":
        """What `to_json` wrote."""
        return ReferenceSpec(**json.loads(text))

    def due_s(self, chunk: int) -> float:
        """Of a chunk, counted from 0."""
        return self.ttft_s + chunk * self.gap_s

    def whole_s(self, num_tokens: int) -> float:
        """From the first moment to the last chunk."""
        return self.due_s(self.num_chunks(num_tokens) - 1)

    def num_chunks(self, num_tokens: int) -> int:
        """Of an answer."""
        return -(-num_tokens // self.chunk_tokens)


def application(spec: ReferenceSpec) -> web.Application:
    """GET /v1/models and POST /v1/completions."""

    places = asyncio.Semaphore(spec.max_running)

    async def complete(request: web.Request) -> web.StreamResponse:
        async with places:
            return await _complete(spec, request)

    app = web.Application()
    app.router.add_get("/v1/models", _models)
    app.router.add_post("/v1/completions", complete)
    return app


async def serve(spec: ReferenceSpec, *, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """On a free port of this machine."""
    runner = web.AppRunner(application(spec), shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        ready(f"{host}:{port}")
        await stop.wait()
    finally:
        await runner.cleanup()


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


async def _complete(spec: ReferenceSpec, request: web.Request) -> web.StreamResponse:
    received_at_s = MonotonicClock().now_s()
    asked = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    with suppress(ConnectionResetError):  # the reader gave up: nobody is left to write to
        async for event in _events(spec, len(asked["prompt"]), asked["max_tokens"], received_at_s):
            await response.write(event)
    return response


async def _events(
    spec: ReferenceSpec, num_prompt_tokens: int, num_tokens: int, received_at_s: float
) -> AsyncIterator[bytes]:
    clock = MonotonicClock()
    for chunk in range(spec.num_chunks(num_tokens)):
        await asyncio.sleep(max(0.0, received_at_s + spec.due_s(chunk) - clock.now_s()))
        num_so_far = min(num_tokens, (chunk + 1) * spec.chunk_tokens)
        choices = [{"index": 0, "text": " word", "finish_reason": None}]
        yield _event(choices, num_prompt_tokens, num_so_far)
    yield _event([], num_prompt_tokens, num_tokens) + b"data: [DONE]\n\n"


def _event(choices: list[dict[str, Any]], num_prompt_tokens: int, num_tokens: int) -> bytes:
    usage = {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_tokens}
    return b"data: %s\n\n" % json.dumps({"choices": choices, "usage": usage}).encode()


if __name__ == "__main__":
    run_process("reference_server", ReferenceSpec.from_json, serve)
