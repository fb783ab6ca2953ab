"""A real server on loopback, speaking well and badly; no figure here depends on time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from bench.load.endpoint import Endpoint, open_target
from bench.load.offer import Arrival, LoadGenerator
from bench.load.outcome import Outcome
from bench.load.reference_server import ReferenceSpec, application
from core.errors import BatonError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
AT_ONCE = ReferenceSpec(ttft_s=0.0, gap_s=0.0, chunk_tokens=2)
TIMEOUT_S = 20.0
"""Of requests that nothing slows down."""


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """Its URL."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


async def asked(app: web.Application, num: int = 1, **options: object) -> list[Outcome]:
    async with served(app) as url:
        endpoint = Endpoint(url=url, **options)  # type: ignore[arg-type]
        async with open_target(endpoint, TIMEOUT_S) as target:
            arrivals = [Arrival(at_s=0.0, token_ids=(1, 2), max_tokens=5)] * num
            return await LoadGenerator(target, timeout_s=TIMEOUT_S).offer(arrivals)


def saying(handler: Handler) -> web.Application:
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    return app


async def test_the_reference_server_is_understood() -> None:
    outcomes = await asked(application(AT_ONCE), num=20)
    assert {o.error for o in outcomes} == {""}
    for outcome in outcomes:
        assert list(outcome.answer.sizes) == [2, 2, 1]
        assert (outcome.answer.num_output_tokens, outcome.answer.is_told) == (5, True)
        assert outcome.answer.usage is not None
        assert outcome.answer.usage.num_prompt_tokens == 2


async def refuse(_: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "too busy"}}, status=429)


async def say_page(_: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>", content_type="text/html")


def streaming(body: bytes) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="text/event-stream")

    return handle


async def hang_up(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"choices": [{"text": "a"}]}\n\n')
    assert request.transport is not None
    request.transport.abort()
    return response


TOKEN, DONE = b'data: {"choices": [{"text": "a"}]}\n\n', b"data: [DONE]\n\n"
FAILURES: list[tuple[str, Handler, str, str]] = [
    # id            server                                    reason         detail
    ("refused", refuse, "HTTP_429", "too busy"),
    ("a web page", say_page, "BAD_ANSWER", "text/html"),
    ("ends early", streaming(TOKEN), "PEER_LOST", "[DONE]"),
    ("hangs up", hang_up, "PEER_LOST", ""),
    ("says nothing", streaming(DONE), "BAD_ANSWER", "without any token"),
    ("fails midway", streaming(TOKEN + b'data: {"error": 1}\n\n'), "ANSWER_FAILED", "error: 1"),
]


@pytest.mark.parametrize(
    ("server", "reason", "detail"), [c[1:] for c in FAILURES], ids=[c[0] for c in FAILURES]
)
async def test_failures(server: Handler, reason: str, detail: str) -> None:
    (outcome,) = await asked(saying(server), model="m")
    assert (outcome.error, outcome.answered) == (reason, None)
    assert detail in outcome.detail


async def test_nobody_there() -> None:
    async with open_target(Endpoint(url="http://127.0.0.1:9/v1", model="m"), 5.0) as target:
        (outcome,) = await LoadGenerator(target, timeout_s=5.0).offer(
            [Arrival(at_s=0.0, token_ids=(1,), max_tokens=1)]
        )
    assert outcome.error == "PEER_LOST"
    assert "127.0.0.1:9" in outcome.detail


async def test_what_is_sent() -> None:
    seen = list[tuple[str, object]]()

    async def note(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers["X-Key"], await request.json()))
        return await streaming(TOKEN + DONE)(request)

    (outcome,) = await asked(saying(note), model="m", headers={"X-Key": "7"}, ignore_eos=False)
    assert outcome.error == ""
    ((key, body),) = seen
    assert (key, body) == (
        "7",
        {
            "model": "m",
            "prompt": [1, 2],
            "max_tokens": 5,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    )


async def test_many_at_once_wait_for_no_connection() -> None:
    """All are asked before any is answered: none has to wait for another's connection."""
    num, waiting, everybody = 150, 0, asyncio.Event()

    async def meet(request: web.Request) -> web.StreamResponse:
        nonlocal waiting
        waiting += 1
        if waiting == num:
            everybody.set()
        async with asyncio.timeout(TIMEOUT_S):
            await everybody.wait()
        return await streaming(TOKEN + DONE)(request)

    assert {o.error for o in await asked(saying(meet), num=num, model="m")} == {""}


NO_MODEL = [
    # id           answer to /models                                      says
    ("none named", web.json_response({"data": []}), "--model"),
    ("no list", web.json_response([1]), "--model"),
    ("not found", web.Response(status=404, text="no"), "HTTP status 404"),
]


@pytest.mark.parametrize(
    ("answer", "says"), [c[1:] for c in NO_MODEL], ids=[c[0] for c in NO_MODEL]
)
async def test_no_model(answer: web.Response, says: str) -> None:
    async def models(_: web.Request) -> web.StreamResponse:
        return answer

    app = web.Application()
    app.router.add_get("/v1/models", models)
    with pytest.raises(BatonError, match=says):
        await asked(app)
