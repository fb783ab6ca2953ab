"""Bad HTTP input: a typed error that names the field, and nothing else is disturbed."""

import asyncio
import io
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from core.config import RouterConfig
from core.limits import MAX_CLIENT_MESSAGE_BYTES
from tests.router.http.conftest import Json, OpenWeb
from tests.router.script import Gate

OK: Json = {"prompt": [5, 6, 7], "max_tokens": 2}
CHAT: Json = {"messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"

CASES = [
    # id, path, body, status, param, code
    ("no JSON", COMPLETIONS, b"{", 400, "body", "invalid_request"),
    ("no UTF-8", COMPLETIONS, b'{"prompt": "\xff"}', 400, "body", "invalid_request"),
    ("deep", COMPLETIONS, b'{"prompt": ' + b"[" * 5000, 400, "body", "invalid_request"),
    ("no prompt", COMPLETIONS, {}, 400, "prompt", "invalid_request"),
    ("empty prompt", COMPLETIONS, {"prompt": ""}, 400, "prompt", "invalid_request"),
    ("no prompts", COMPLETIONS, {"prompt": []}, 400, "prompt", "invalid_request"),
    ("65 prompts", COMPLETIONS, {"prompt": ["w1"] * 65}, 400, "prompt", "invalid_request"),
    ("id too large", COMPLETIONS, {"prompt": [512]}, 400, "prompt[0]", "invalid_request"),
    ("id below 0", COMPLETIONS, {"prompt": [-1]}, 400, "prompt[0]", "invalid_request"),
    ("surrogate", COMPLETIONS, b'{"prompt": "\\ud800"}', 400, None, "invalid_request"),
    ("n of 17", COMPLETIONS, OK | {"n": 17}, 400, "n", "invalid_request"),
    ("huge n", COMPLETIONS, OK | {"n": 10**30}, 400, "n", "invalid_request"),
    ("text for number", COMPLETIONS, OK | {"n": "1"}, 400, "n", "invalid_request"),
    ("no tokens", COMPLETIONS, OK | {"max_tokens": 0}, 400, "max_tokens", "invalid_request"),
    ("hot", COMPLETIONS, OK | {"temperature": 101}, 400, "temperature", "invalid_request"),
    ("NaN", COMPLETIONS, b'{"prompt": [1], "top_p": NaN}', 400, "top_p", "invalid_request"),
    ("empty stop", COMPLETIONS, OK | {"stop": [""]}, 400, "stop[0]", "invalid_request"),
    ("bias", COMPLETIONS, OK | {"logit_bias": {"x": 1}}, 400, "logit_bias", "invalid_request"),
    ("long", COMPLETIONS, OK | {"max_tokens": 5000}, 400, "max_tokens", "invalid_request"),
    ("model", COMPLETIONS, OK | {"model": "gpt-9"}, 404, None, "unknown_model"),
    ("echo", COMPLETIONS, OK | {"echo": True, "logprobs": 1}, 400, None, "unsupported"),
    ("tools", CHATS, CHAT | {"tools": [{}]}, 400, None, "unsupported"),
    ("LoRA", CHATS, CHAT | {"lora_request": {"name": "x"}}, 400, None, "unsupported"),
    ("no messages", CHATS, {"messages": []}, 400, "messages", "invalid_request"),
    (
        "picture",
        CHATS,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        None,
        "unsupported",
    ),
    ("no schema", CHATS, CHAT | {"response_format": {"type": "json_schema"}}, 400,
     "response_format.json_schema.schema", "invalid_request"),
    ("options", CHATS, CHAT | {"stream_options": {}}, 400, "stream_options", "invalid_request"),
    ("tokenize nothing", "/tokenize", {}, 400, "prompt", "invalid_request"),
    ("detokenize", "/detokenize", {"tokens": [512]}, 400, "tokens[0]", "invalid_request"),
    ("path", "/v2", {}, 404, None, "not_found"),
    ("method", "/v1/models", {}, 405, None, "method_not_allowed"),
]  # fmt: skip


async def test_each_is_refused_by_name(web: OpenWeb) -> None:
    site = await web()
    for name, path, body, status, param, code in CASES:
        reply = await site.post(path, body)
        got = (reply.status, reply.error["param"], reply.error["code"])
        wanted = (status, param or reply.error["param"], code)
        assert got == wanted, f"{name}: {reply.error}"
        assert reply.error["request_id"] == reply.headers["x-request-id"], name
    assert (await site.post(COMPLETIONS, OK)).status == 200


async def test_all_problems_at_once(web: OpenWeb) -> None:
    site = await web()
    error = (await site.post(COMPLETIONS, OK | {"top_p": 2, "min_p": -1, "n": 0})).error
    assert all(name in error["message"] for name in ("top_p", "min_p", "n:"))


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit(web: OpenWeb, declared: bool) -> None:
    site = await web()
    data = b'{"prompt": "' + b"w1 " * (MAX_CLIENT_MESSAGE_BYTES // 3)
    body = io.BytesIO(data) if declared else _in_parts(data)
    try:
        reply = await site.ask("POST", COMPLETIONS, data=body)
    except aiohttp.ClientOSError:
        return  # the connection was closed while the client still sent: seen on a busy machine
    assert (reply.status, reply.error["code"]) == (413, "too_large")


async def _in_parts(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


async def test_a_client_names_its_request(web: OpenWeb) -> None:
    site = await web()
    reply = await site.post(COMPLETIONS, OK, x_request_id="my.id-1")
    assert reply.headers["x-request-id"] == "my.id-1"
    assert reply.json["id"] == "cmpl-my.id-1"
    reply = await site.post(COMPLETIONS, OK, x_request_id="no such/id")
    assert reply.status == 200
    assert reply.headers["x-request-id"] != "no such/id"


async def test_a_request_id_in_use(web: OpenWeb) -> None:
    site = await web()
    gate = site.on["p0"].script.prefill_gate = Gate()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(site.post(COMPLETIONS, OK, x_request_id="one"))
        await gate.wait_reached()
        reply = await site.post(COMPLETIONS, OK, x_request_id="one")
        assert (reply.status, reply.error["code"]) == (409, "duplicate_request")
        gate.open.set()
    assert first.result().status == 200


async def test_headers_are_checked_like_fields(web: OpenWeb) -> None:
    site = await web()
    for header, value in (("x-baton-tenant", "a b"), ("x-baton-timeout-s", "soon")):
        reply = await site.ask("POST", COMPLETIONS, data=json.dumps(OK), headers={header: value})
        assert reply.status == 400, header


async def test_full_means_429_with_a_hint(web: OpenWeb) -> None:
    site = await web("pd", config=RouterConfig(max_running=1, max_queued=1))
    gate = site.on["p0"].script.prefill_gate = Gate()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(site.post(COMPLETIONS, OK))
        await gate.wait_reached()
        waiting = group.create_task(site.post(COMPLETIONS, OK))
        await site.until_queued(1)
        reply = await site.post(COMPLETIONS, OK)
        assert reply.status == 429
        assert int(reply.headers["retry-after"]) >= 1
        gate.open.set()
    assert running.result().status == waiting.result().status == 200
