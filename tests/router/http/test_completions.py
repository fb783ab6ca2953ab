"""/v1/completions: whole and streamed, alone and several at once."""

import json
import math
from pathlib import Path

from core.request import TokenLogprobs
from router.http.shapes import IMPOSSIBLE, CompletionShape, Piece
from tests.router.fake_model import expected
from tests.router.http.conftest import Json, OpenWeb, words
from text.tokenizer import Tokenizer

PROMPT = [5, 6, 7]
BODY: Json = {"prompt": PROMPT, "max_tokens": 6, "seed": 3}
WANT = expected(PROMPT, 6, seed=3)


async def test_whole(web: OpenWeb) -> None:
    site = await web()
    reply = await site.post("/v1/completions", BODY | {"return_token_ids": True})
    assert reply.status == 200
    document = reply.json
    [choice] = document["choices"]
    assert choice["text"] == words(WANT)
    assert choice["token_ids"] == WANT
    assert choice["finish_reason"] == "length"
    assert document["object"] == "text_completion"
    assert document["model"] == "fake"
    assert document["id"] == f"cmpl-{reply.headers['x-request-id']}"
    assert document["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_stream_says_the_same(web: OpenWeb) -> None:
    site = await web()
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = await site.post("/v1/completions", BODY | {"stream": True, "stream_options": options})
    *pieces, last = reply.chunks
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == words(WANT)
    assert [piece["choices"][0]["finish_reason"] for piece in pieces if piece["choices"]][
        -1
    ] == "length"
    counts = [piece["usage"]["completion_tokens"] for piece in pieces]
    assert counts == sorted(counts)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 9
    assert reply.headers["content-type"].startswith("text/event-stream")


async def test_usage_is_only_told_when_asked_for(web: OpenWeb) -> None:
    site = await web()
    reply = await site.post("/v1/completions", BODY | {"stream": True})
    assert all("usage" not in chunk for chunk in reply.chunks)
    options = {"include_usage": True}
    reply = await site.post("/v1/completions", BODY | {"stream": True, "stream_options": options})
    *pieces, last = reply.chunks
    assert all(chunk["usage"] is None for chunk in pieces)
    assert last["usage"]["completion_tokens"] == 6


async def test_many_prompts_and_choices(web: OpenWeb) -> None:
    site = await web("pdd")
    prompts = [[5, 6], [7, 8, 9]]
    body = {"prompt": prompts, "max_tokens": 4, "seed": 1, "n": 2}
    reply = await site.post("/v1/completions", body)
    want = [words(expected(p, 4, seed=1, child=c)) for p in prompts for c in range(2)]
    assert [choice["text"] for choice in reply.json["choices"]] == want
    assert [choice["index"] for choice in reply.json["choices"]] == [0, 1, 2, 3]
    assert reply.json["usage"]["prompt_tokens"] == 5
    assert reply.json["usage"]["completion_tokens"] == 16
    streamed = await site.post("/v1/completions", body | {"stream": True})
    texts = ["", "", "", ""]
    for chunk in streamed.chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == want


async def test_text_prompts_and_echo(web: OpenWeb) -> None:
    site = await web()
    body = {"prompt": "w5 w6 w7", "max_tokens": 6, "seed": 3, "echo": True}
    reply = await site.post("/v1/completions", body)
    assert reply.json["choices"][0]["text"] == "w5 w6 w7" + words(WANT)
    streamed = await site.post("/v1/completions", body | {"stream": True})
    text = "".join(chunk["choices"][0]["text"] for chunk in streamed.chunks)
    assert text == "w5 w6 w7" + words(WANT)


async def test_logprobs(web: OpenWeb) -> None:
    site = await web()
    reply = await site.post("/v1/completions", BODY | {"logprobs": 2})
    told = reply.json["choices"][0]["logprobs"]
    assert told["tokens"] == [f"w{token_id}" for token_id in WANT]
    assert told["token_logprobs"] == [-token_id / 4 for token_id in WANT]
    assert list(told["top_logprobs"][0]) == [f"w{WANT[0]}", f"w{WANT[0] + 1}"]
    assert told["text_offset"][0] == 0


async def test_stop_strings(web: OpenWeb) -> None:
    site = await web()
    stop = f"w{WANT[2]}"
    for given in (stop, [stop]):
        reply = await site.post("/v1/completions", BODY | {"stop": given})
        [choice] = reply.json["choices"]
        assert choice["text"] == words(WANT[:2]) + " "
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


async def test_sixteen_tokens_by_default(web: OpenWeb) -> None:
    site = await web()
    reply = await site.post("/v1/completions", {"prompt": PROMPT})
    assert reply.json["usage"]["completion_tokens"] == 16


def test_impossible_tokens_are_json(model_dir: Path) -> None:
    shape = CompletionShape(Tokenizer.load(model_dir), echo=False)
    never = TokenLogprobs(-math.inf, ((6, -math.inf),))
    told = shape.piece(Piece(text="w5", token_ids=[5], logprobs=[never]))["logprobs"]
    assert json.loads(json.dumps(told, allow_nan=False))["token_logprobs"] == [IMPOSSIBLE]
