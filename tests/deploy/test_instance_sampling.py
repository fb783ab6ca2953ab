"""Log-probabilities and grammars on their way through two instances."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from core.config import Config, EngineConfig
from core.errors import FieldViolation, InvalidRequest
from core.ids import InstanceId
from core.member import Role
from core.request import Grammar, GrammarKind, TokenLogprobs
from core.work import WorkRequest
from deploy.assembly import Compute
from deploy.instance import InstanceSpec, load_compute
from deploy.tiny_model import write_tiny_llama
from rpc.convert import logprobs_from_pb
from rpc.pb import workers_pb2 as pb
from tests.deploy.instances import (
    Running,
    decode_request,
    events,
    instance,
    prefill_request,
    subscribed,
    work,
)
from tests.worker_host.fake_engine import (
    FAKE_SPEC,
    FINGERPRINT,
    FakeRunner,
    expected_logprobs,
    expected_tokens,
)
from text.tokenizer import Tokenizer

ROOMY = Config(engine=EngineConfig(num_blocks=128, block_size=16))


@pytest_asyncio.fixture
async def prefill() -> AsyncIterator[Running]:
    """A prefill instance."""
    async with instance(Role.PREFILL) as running:
        yield running


@pytest_asyncio.fixture
async def decode() -> AsyncIterator[Running]:
    """A decode instance."""
    async with instance(Role.DECODE) as running:
        yield running


def asking(request: WorkRequest, **changes: object) -> WorkRequest:
    """With other sampling parameters."""
    return replace(request, sampling=replace(request.sampling, **changes))  # type: ignore[arg-type]


def told(outputs: list[pb.Output]) -> dict[int, TokenLogprobs]:
    """Log-probabilities by position."""
    return {
        position: logprobs_from_pb(logprobs)
        for output in outputs
        for position, logprobs in enumerate(output.logprobs, output.first_position)
    }


async def test_each_token_comes_with_its_logprobs(prefill: Running, decode: Running) -> None:
    """The first with prefill's event and with decode's frame; forced ones are not told again."""
    want = expected_tokens(work().prompt_token_ids, 6)
    request = asking(work(forced=tuple(want[:1]), attempt=2), num_logprobs=2)
    async with subscribed(decode) as router:
        await decode.decode.Decode(decode_request(request, prefill))
        _, first, _ = await events(prefill.prefill.Prefill(prefill_request(request)))
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
    assert logprobs_from_pb(first.token.logprobs) == expected_logprobs(want[1])
    assert told(heard.outputs) == {n: expected_logprobs(want[n]) for n in range(1, 6)}


async def test_a_new_subscription_hears_them_again(prefill: Running, decode: Running) -> None:
    request = asking(work(), num_logprobs=2)
    want = expected_tokens(request.prompt_token_ids, 6)
    async with subscribed(decode) as router:
        await decode.decode.Decode(decode_request(request, prefill))
        await events(prefill.prefill.Prefill(prefill_request(request)))
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
    ack = pb.Ack(handoff_id=request.handoff_id, next_position=3)
    async with subscribed(decode, ack) as router:
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
    assert told(heard.outputs) == {n: expected_logprobs(want[n]) for n in range(3, 6)}


async def test_nobody_hears_what_nobody_asked_for(prefill: Running, decode: Running) -> None:
    request = work()
    async with subscribed(decode) as router:
        await decode.decode.Decode(decode_request(request, prefill))
        _, first, _ = await events(prefill.prefill.Prefill(prefill_request(request)))
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
    assert not first.token.HasField("logprobs")
    assert not any(output.logprobs for output in heard.outputs)


def check_grammar(grammar: Grammar) -> None:
    """A compiler that knows one grammar."""
    if grammar.text != "good":
        raise InvalidRequest((FieldViolation("sampling.grammar", "not good"),))


GRAMMARS = [
    # id                      has a compiler  grammar  want
    ("good", True, "good", None),
    ("bad", True, "bad", grpc.StatusCode.INVALID_ARGUMENT),
    ("without a compiler", False, "good", grpc.StatusCode.UNIMPLEMENTED),
]


@pytest.mark.parametrize(
    ("has_compiler", "text", "want"), [g[1:] for g in GRAMMARS], ids=[g[0] for g in GRAMMARS]
)
async def test_both_phases_refuse_bad_grammars_at_the_door(
    has_compiler: bool, text: str, want: grpc.StatusCode | None
) -> None:
    runner = FakeRunner()
    compute = Compute(
        model=FAKE_SPEC,
        runner=runner,
        store=runner.store,
        fingerprint=FINGERPRINT,
        check_grammar=check_grammar if has_compiler else None,
    )
    request = asking(work(), grammar=Grammar(GrammarKind.REGEX, text))
    async with instance(Role.MIXED, compute=compute) as mixed, subscribed(mixed) as router:
        if want is None:
            await mixed.decode.Decode(decode_request(request, mixed))
            await events(mixed.prefill.Prefill(prefill_request(request)))
            heard = router.heard(request.handoff_id)
            await router.until(lambda: heard.is_over)
            assert heard.token_ids == expected_tokens(request.prompt_token_ids, 6)
        else:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await mixed.decode.Decode(decode_request(request, mixed))
            assert refused.value.code() is want
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await events(mixed.prefill.Prefill(prefill_request(request)))
            assert refused.value.code() is want
        await mixed.all_returned()


async def test_a_real_instance_answers_in_json(tmp_path: Path) -> None:
    """From the folder of a model to text that parses."""
    folder = write_tiny_llama(tmp_path / "tiny")
    tokenizer = Tokenizer.load(folder)
    spec = InstanceSpec(
        instance_id=InstanceId("real"), role=Role.MIXED, model_dir=folder, config=ROOMY
    )
    compute = await asyncio.to_thread(load_compute, spec)
    schema = '{"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}'
    request = asking(
        work(
            fingerprint=compute.fingerprint, max_tokens=400, stop_token_ids=tokenizer.eos_token_ids
        ),
        grammar=Grammar(GrammarKind.JSON_SCHEMA, schema[:-1] + ', "additionalProperties": false}'),
        num_logprobs=1,
    )
    bad = asking(request, grammar=Grammar(GrammarKind.REGEX, "("))
    async with (
        instance(Role.MIXED, ROOMY, compute) as mixed,
        subscribed(mixed) as router,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="unclosed group"):
            await events(mixed.prefill.Prefill(prefill_request(bad)))
        await mixed.decode.Decode(decode_request(request, mixed))
        await events(mixed.prefill.Prefill(prefill_request(request)))
        heard = router.heard(request.handoff_id)
        await router.until(lambda: heard.is_over)
    assert json.loads(tokenizer.decode(heard.token_ids))["a"] in {"x", "y"}
    assert sorted(told(heard.outputs)) == list(range(len(heard.token_ids)))
