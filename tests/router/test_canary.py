"""What clients say stays theirs: no log line, metric, trace, explanation or error repeats it."""

import asyncio
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import grpc.aio
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from core.config import RouterConfig
from core.logs import JsonLines
from deploy.tiny_model import write_tiny_llama
from rpc.pb import generation_pb2, types_pb2
from tests.router.asking import ask_raw, explain, scrape
from tests.router.conftest import OpenStage, Stage
from tests.router.script import BOUND_S
from tests.router.test_tracing import collector
from text.tokenizer import Tokenizer

CANARY = "xK9qCANARYq9Kx"
IDS = (271, 314, 159, 265)
FOUND = re.compile(rf"{CANARY}|\b271\W{{1,3}}314\b", re.IGNORECASE)
SCHEMA = f'{{"type": "object", "properties": {{"{CANARY}": {{"type": "string"}}}}}}'

Request = generation_pb2.GenerateRequest


def asking(**fields: object) -> Request:
    whole = {"text": f"w5 {CANARY} w6", "stop": {"max_tokens": 3}} | fields
    if "token_ids" in fields or "chat" in fields:
        del whole["text"]
    return Request(**whole)  # type: ignore[arg-type]


def constrained(**grammar: object) -> Request:
    return asking(sampling=types_pb2.SamplingParams(grammar=grammar))  # type: ignore[arg-type]


CHAT = {"messages": [{"role": "user", "content": CANARY}, {"role": CANARY, "content": "w5"}]}
REQUESTS = {
    "text": asking(),
    "ids": asking(token_ids={"ids": IDS}),
    "chat": asking(chat=CHAT),
    "stop": asking(stop={"max_tokens": 3, "stop_strings": [CANARY]}),
    "regex": constrained(regex=f"w[0-9]|{CANARY}"),
    "schema": constrained(json_schema=SCHEMA),
    "bad-schema": constrained(json_schema=f'{{"{CANARY}"'),
    "keyword": constrained(json_schema=f'{{"{CANARY}": 1}}'),
    "long-role": asking(chat={"messages": [{"role": CANARY * 9, "content": CANARY}]}),
    "long-stop": asking(stop={"max_tokens": 3, "stop_strings": [CANARY * 9]}),
    "model": asking(model=CANARY),
    "tenant": asking(tenant=f"{CANARY} {{"),
    "long": asking(text=f"{CANARY} " * 5000),
    "ids-outside": asking(token_ids={"ids": (*IDS, 999_999)}),
}
QUOTED = {
    # Whoever wrote a grammar is told what is wrong with it in its own words; nobody else is.
    "bad-regex": constrained(regex=f"{CANARY}("),
    "odd-type": constrained(json_schema=f'{{"type": "{CANARY}"}}'),
    "bad-pattern": constrained(json_schema=f'{{"pattern": "{CANARY}("}}'),
}


async def ask_all(on: Stage, requests: Mapping[str, Request] = REQUESTS) -> list[str]:
    """Every request; the errors' texts."""
    texts = []
    for name, message in requests.items():
        named = Request(request_id=name)
        named.MergeFrom(message)
        texts.append((await ask_raw(on, named)).message)
    return texts


async def ask_over_http(on: Stage) -> list[str]:
    """As many ways to go wrong there; what was answered to those."""
    bodies = [
        f'{{"prompt": "{CANARY}"',
        f'{{"prompt": {{"{CANARY}": 1}}}}',
        f'{{"prompt": "{CANARY}", "max_tokens": "{CANARY}"}}',
        f'{{"prompt": "{CANARY}", "logit_bias": {{"{CANARY}": 1}}}}',
        f'{{"prompt": "{CANARY}", "max_tokens": -1}}',
        f'{{"prompt": "{CANARY}", "stop": ["{CANARY * 9}"]}}',
        f'{{"prompt": "{CANARY}", "model": "{CANARY}"}}',
    ]
    texts = []
    async with aiohttp.ClientSession() as session:
        for body in bodies:
            async with session.post(
                f"http://{on.routers[0].http_address}/v1/completions",
                data=body,
                headers={"content-type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=BOUND_S),
            ) as reply:
                assert reply.status >= 400, body
                texts.append(await reply.text())
    return texts


async def explanations(on: Stage) -> list[str]:
    found = []
    for name in (*REQUESTS, *QUOTED, "bug"):
        try:
            found.append(str(await explain(on, name)))
        except grpc.aio.AioRpcError as error:
            found.append(str(error.details()))
    return found


def quotes(texts: list[str]) -> list[str]:
    return [text for text in texts if FOUND.search(text)]


def traced(span: WireSpan) -> str:
    """All of it but its random ids: their bytes, printed in octal, can be \\271\\314 by chance."""
    kept = WireSpan()
    kept.CopyFrom(span)
    for field in ("trace_id", "span_id", "parent_span_id"):
        kept.ClearField(field)
    return str(kept)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = JsonLines()
    return [lines.format(record) for record in caplog.records]


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer grammars can be compiled for; the fake one's cannot."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


async def test_nobody_repeats_what_clients_say(
    stage: OpenStage,
    tiny_dir: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with collector() as (url, spans):
        config = RouterConfig(otlp_endpoint=url, max_attempts=1)
        on = await stage("pd", config=config, model=tiny_dir)
        errors = await ask_all(on)
        assert sum(not text for text in errors) == 7, "those that nothing is wrong with"
        assert len(quotes(await ask_all(on, QUOTED))) == len(QUOTED)
        errors.append((await ask_raw(on, asking(request_id=f"../{CANARY}"))).message)
        errors += await ask_over_http(on)
        told = await explanations(on)
        for peer in on.peers.values():
            peer.script.prefill_error = grpc.StatusCode.UNAVAILABLE
        failed = await ask_all(on)
        assert all(failed)
        told += await explanations(on)
        monkeypatch.setattr(Tokenizer, "encode", _fail)
        errors += [*failed, (await ask_raw(on, asking(request_id="bug"))).message]
        told += await explanations(on)
        metrics = [await scrape(on)]
        on.routers[0].stop.set()
        async with asyncio.timeout(BOUND_S):
            await asyncio.wait({on.routers[0].task})
        assert len(spans) > 3 * len(REQUESTS)
        seen = {
            "logs": logged(caplog),
            "errors": errors,
            "explanations": told,
            "metrics": metrics,
            "traces": list(map(traced, spans)),
        }
    assert {where: quotes(texts) for where, texts in seen.items()} == {where: [] for where in seen}
    assert "bug error_id=" in caplog.text


def _fail(tokenizer: Tokenizer, text: str) -> list[int]:
    raise ValueError(f"cannot read {text}")
