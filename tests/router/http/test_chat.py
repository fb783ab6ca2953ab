"""/v1/chat/completions: what differs from completions."""

from tests.router.fake_model import expected
from tests.router.http.conftest import Json, OpenWeb, words

MESSAGES = [{"role": "user", "content": "w5 w6"}, {"role": "assistant", "content": "w7"}]
BODY: Json = {"messages": MESSAGES, "max_completion_tokens": 5, "seed": 3}
WANT = expected([5, 6, 7], 5, seed=3)


async def test_whole(web: OpenWeb) -> None:
    site = await web()
    document = (await site.post("/v1/chat/completions", BODY)).json
    [choice] = document["choices"]
    assert choice["message"] == {"role": "assistant", "content": words(WANT), "refusal": None}
    assert choice["finish_reason"] == "length"
    assert document["object"] == "chat.completion"
    assert document["usage"]["prompt_tokens"] == 3


async def test_a_stream_says_the_same(web: OpenWeb) -> None:
    site = await web()
    chunks = (await site.post("/v1/chat/completions", BODY | {"stream": True})).chunks
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == words(WANT)
    assert deltas[-1] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_parts_of_text_are_joined(web: OpenWeb) -> None:
    site = await web()
    parts = [{"type": "text", "text": "w5 "}, {"type": "text", "text": "w6 w7"}]
    body = BODY | {"messages": [{"role": "user", "content": parts}]}
    document = (await site.post("/v1/chat/completions", body)).json
    assert document["choices"][0]["message"]["content"] == words(WANT)


async def test_logprobs(web: OpenWeb) -> None:
    site = await web()
    body = BODY | {"logprobs": True, "top_logprobs": 1}
    told = (await site.post("/v1/chat/completions", body)).json["choices"][0]["logprobs"]
    assert [entry["token"] for entry in told["content"]] == [f"w{i}" for i in WANT]
    first = told["content"][0]
    assert first["logprob"] == -WANT[0] / 4
    assert bytes(first["bytes"]).decode() == first["token"]
    assert [likely["token"] for likely in first["top_logprobs"]] == [first["token"]]


async def test_null_is_as_if_not_given(web: OpenWeb) -> None:
    site = await web()
    names = ("temperature", "stop", "n", "tools", "response_format", "stream", "logit_bias")
    reply = await site.post("/v1/chat/completions", BODY | dict.fromkeys(names))
    assert reply.json["choices"][0]["message"]["content"] == words(WANT)
