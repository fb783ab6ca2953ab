"""Run by the clients' own Python: what the openai package sees of a server, as JSON.

python openai_session.py http://127.0.0.1:8000/v1
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai

PROMPT = [5, 6, 7, 8]
ASKED = {"max_tokens": 12, "temperature": 1.0, "seed": 42}
MESSAGES = [{"role": "user", "content": "hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


def main(base_url: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120.0)
    model = client.models.list().data[0].id
    seen = {"model": model, "retrieved": client.models.retrieve(model).id}
    seen |= completions(client, model) | chats(client, model) | errors(client, model)
    return seen | {"crowd": asyncio.run(crowd(base_url, model))}


def completions(client: openai.OpenAI, model: str) -> dict[str, Any]:
    whole = client.completions.create(model=model, prompt=PROMPT, n=2, logprobs=2, **ASKED)
    stream = client.completions.create(
        model=model,
        prompt=PROMPT,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"return_token_ids": True},
        **ASKED,
    )
    chunks = list(stream)
    return {
        "whole": [choice.text for choice in whole.choices],
        "logprobs": whole.choices[0].logprobs.model_dump(),
        "usage": whole.usage.model_dump(),
        "streamed": "".join(c.choices[0].text for c in chunks if c.choices),
        "token_ids": [i for c in chunks if c.choices for i in c.choices[0].token_ids],
        "stream_usage": chunks[-1].usage.model_dump(),
    }


def chats(client: openai.OpenAI, model: str) -> dict[str, Any]:
    asked = {"model": model, "messages": MESSAGES, **ASKED}
    whole = client.chat.completions.create(logprobs=True, top_logprobs=1, **asked)
    chunks = list(client.chat.completions.create(stream=True, **asked))
    with client.chat.completions.stream(**asked) as helper:
        events = list(helper)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    shaped = client.chat.completions.create(
        model=model, messages=MESSAGES, response_format=schema, max_completion_tokens=100, seed=1
    )
    return {
        "chat": whole.choices[0].message.content,
        "chat_logprobs": len(whole.choices[0].logprobs.content),
        "chat_streamed": "".join(c.choices[0].delta.content or "" for c in chunks),
        "chat_helped": events[-1].content,
        "finish": [e.chunk for e in events if e.type == "chunk"][-1].choices[0].finish_reason,
        "shaped": [shaped.choices[0].message.content, shaped.choices[0].finish_reason],
        "request_id": whole._request_id,
    }


def errors(client: openai.OpenAI, model: str) -> dict[str, Any]:
    asked = {"model": model, "prompt": PROMPT}
    return {
        "bad": _error(lambda: client.completions.create(temperature=-1, **asked)),
        "missing": _error(lambda: client.completions.create(model="gpt-9", prompt="x")),
        "tools": _error(
            lambda: client.chat.completions.create(
                model=model,
                messages=MESSAGES,
                tools=[{"type": "function", "function": {"name": "f"}}],
            )
        ),
    }


def _error(call: Callable[[], object]) -> list[Any]:
    try:
        call()
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        return [type(error).__name__, error.status_code, body.get("param"), body.get("code")]
    return ["no error"]


async def crowd(base_url: str, model: str) -> int:
    """So many different answers to 24 requests of one seed, at once."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        calls = [client.completions.create(model=model, prompt=PROMPT, **ASKED) for _ in range(24)]
        answers = await asyncio.gather(*calls)
    return len({answer.choices[0].text for answer in answers})


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
