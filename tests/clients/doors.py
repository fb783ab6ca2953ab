"""One request through each door, by plain clients of ours."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from router.client import AsyncClient
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import inference_pb2 as pb
from rpc.pb import inference_pb2_grpc

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What every door tells of an answer."""

    texts: tuple[str, ...]
    token_ids: tuple[int, ...]
    """Of all choices, one after the other."""
    num_prompt_tokens: int
    num_output_tokens: int


Options = Mapping[str, Any]


async def by_grpc(address: str, prompt: Sequence[int], options: Options) -> Said:
    given = dict(options)
    given["stop"] = given.pop("stop", ())
    async with AsyncClient([address]) as client:
        answers = await client.complete(token_ids=prompt, timeout_s=TIMEOUT_S, **given)
    return Said(
        texts=tuple(answer.text for answer in answers),
        token_ids=tuple(i for answer in answers for i in answer.token_ids),
        num_prompt_tokens=len(prompt),
        num_output_tokens=sum(answer.finished.num_output_tokens for answer in answers),
    )


async def by_http(address: str, prompt: Sequence[int], options: Options) -> Said:
    body = {**options, "prompt": list(prompt), "return_token_ids": True}
    async with _session(address) as session, session.post("/v1/completions", json=body) as reply:
        document = await reply.json()
    assert reply.status == 200, document
    return _said(document["choices"], document["usage"])


async def by_stream(address: str, prompt: Sequence[int], options: Options) -> Said:
    body = {**options, "prompt": list(prompt), "return_token_ids": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    async with _session(address) as session, session.post("/v1/completions", json=body) as reply:
        lines = (await reply.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            choice = choices.setdefault(piece["index"], {"text": "", "token_ids": []})
            choice["text"] += piece["text"]
            choice["token_ids"] += piece.get("token_ids", [])
    return _said([choices[index] for index in sorted(choices)], chunks[-1]["usage"])


async def by_kserve(address: str, prompt: Sequence[int], options: Options) -> Said:
    message = pb.ModelInferRequest(model_name=options.get("model", ""))
    tensor = message.inputs.add(name="input_ids", datatype="INT64", shape=[len(prompt)])
    tensor.contents.int64_contents.extend(prompt)
    tensor = message.inputs.add(name="sampling_parameters", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(json.dumps(dict(options)).encode())
    async with dial(address, plane=Plane.CLIENT) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        reply = await stub.ModelInfer(message, timeout=TIMEOUT_S)
    outputs = {output.name: output.contents for output in reply.outputs}
    return Said(
        texts=tuple(text.decode() for text in outputs["text_output"].bytes_contents),
        token_ids=tuple(outputs["output_ids"].int64_contents),
        num_prompt_tokens=reply.parameters["prompt_tokens"].int64_param,
        num_output_tokens=reply.parameters["completion_tokens"].int64_param,
    )


def _session(address: str) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    return aiohttp.ClientSession(f"http://{address}", timeout=timeout)


def _said(choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any]) -> Said:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return Said(
        texts=tuple(choice["text"] for choice in choices),
        token_ids=tuple(i for choice in choices for i in choice["token_ids"]),
        num_prompt_tokens=usage["prompt_tokens"],
        num_output_tokens=usage["completion_tokens"],
    )
