"""Cancel, deadline and bad input: typed statuses, nothing left, and the next request works."""

import asyncio
import math

import grpc.aio
import pytest

from router.client import AsyncClient
from router.events import Delta
from rpc.dial import dial
from rpc.pb import generation_pb2, generation_pb2_grpc, types_pb2
from tests.e2e.asking import Question, ask
from tests.e2e.books import books_of
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

GREEDY = types_pb2.SamplingParams(temperature=0.0)
VALID = generation_pb2.GenerateRequest(
    text="hello", sampling=GREEDY, stop=types_pb2.StopParams(max_tokens=4)
)


def _request(**fields: object) -> generation_pb2.GenerateRequest:
    request = generation_pb2.GenerateRequest()
    request.CopyFrom(VALID)
    request.MergeFrom(generation_pb2.GenerateRequest(**fields))  # type: ignore[arg-type]
    return request


BAD = [
    # id               request                                                          status
    ("empty prompt", _request(text=""), "INVALID_ARGUMENT"),
    ("no prompt", generation_pb2.GenerateRequest(), "INVALID_ARGUMENT"),
    ("too long", _request(token_ids={"ids": [5] * 5000}), "INVALID_ARGUMENT"),
    ("token out of vocabulary", _request(token_ids={"ids": [10**6]}), "INVALID_ARGUMENT"),
    ("over the context", _request(stop={"max_tokens": 100_000}), "INVALID_ARGUMENT"),
    ("unknown model", _request(model="gpt-17"), "NOT_FOUND"),
    ("NaN temperature", _request(sampling={"temperature": math.nan}), "INVALID_ARGUMENT"),
    ("infinite top_p", _request(sampling={"top_p": math.inf}), "INVALID_ARGUMENT"),
    ("negative max_tokens", _request(stop={"max_tokens": -1}), "INVALID_ARGUMENT"),
    ("zero max_tokens", _request(stop={"max_tokens": 0}), "INVALID_ARGUMENT"),
    ("huge n", _request(num_choices=10_000), "INVALID_ARGUMENT"),
    ("5 MB message", _request(text="x" * 5_000_000), "RESOURCE_EXHAUSTED"),
    ("zero timeout", _request(timeout_s=0.0), "INVALID_ARGUMENT"),
]


@pytest.mark.parametrize(("request_", "status"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_input(
    tiny_pair: RunningCluster, request_: generation_pb2.GenerateRequest, status: str
) -> None:
    tiny_pair.run(_refused_then_served(tiny_pair.cluster.router_addresses[0], request_, status))


async def _refused_then_served(
    address: str, request: generation_pb2.GenerateRequest, status: str
) -> None:
    options = {"grpc.max_send_message_length": -1}
    async with dial(address, options) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(request, timeout=30.0):
                pass
        assert caught.value.code().name == status, caught.value.details()
        # Never the prompt itself.
        assert "xxxx" not in (caught.value.details() or "")
        events = [event async for event in stub.Generate(VALID, timeout=60.0)]
        assert events[-1].WhichOneof("event") == "finished"


@pytest.mark.parametrize("after_tokens", [0, 1, 30])
def test_cancel_frees_everything(tiny_pair: RunningCluster, after_tokens: int) -> None:
    tiny_pair.run(_cancel(tiny_pair, after_tokens))


async def _cancel(running: RunningCluster, after_tokens: int) -> None:
    cluster, seen = running.cluster, 0
    prompt = tuple(3 + i % 500 for i in range(1200))
    async with AsyncClient(cluster.router_addresses) as client:
        stream = client.generate(token_ids=prompt, max_tokens=800, ignore_eos=True, timeout_s=60.0)
        async for event in stream:
            seen += len(event.token_ids) if isinstance(event, Delta) else 0
            if seen >= after_tokens:
                break
        await stream.aclose()
        status = await books_of(cluster.addresses["decode-0"])
        assert status.integrity.num_steps >= 0
        answer = await ask(client, Question(prompt=(4, 5, 6), max_tokens=3))
        assert len(answer.token_ids) == 3


def test_deadline_reaches_both_workers(tiny_pair: RunningCluster) -> None:
    async def late() -> str:
        address = tiny_pair.cluster.router_addresses[0]
        request = _request(
            token_ids={"ids": [7] * 1000},
            stop={"max_tokens": 1000, "ignore_eos": True},
            timeout_s=0.2,
        )
        async with dial(address) as channel:
            stub = generation_pb2_grpc.GenerationStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stub.Generate(request, timeout=30.0):
                    pass
        return caught.value.code().name

    assert tiny_pair.run(late()) == "DEADLINE_EXCEEDED"


def test_many_cancels_at_random_moments(tiny_pair: RunningCluster) -> None:
    async def one(client: AsyncClient, number: int) -> None:
        stream = client.generate(
            token_ids=tuple(3 + (number * i) % 500 for i in range(1, 40 + number * 20)),
            max_tokens=100,
            ignore_eos=True,
            timeout_s=60.0,
        )
        seen = 0
        async for _ in stream:
            seen += 1
            if seen > number % 12:
                break
        await stream.aclose()

    async def all_of_them() -> None:
        async with (
            AsyncClient(tiny_pair.cluster.router_addresses) as client,
            asyncio.TaskGroup() as group,
        ):
            for number in range(40):
                group.create_task(one(client, number))

    tiny_pair.run(all_of_them())
