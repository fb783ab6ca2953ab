"""What clients may ask for reaches the workers, and what they asked for comes back."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from core.config import RouterConfig
from core.errors import InvalidRequest, ModelError
from core.request import SamplingParams
from deploy.tiny_model import write_tiny_llama
from router.progress import build_message
from router.wire import draft_from_pb, event_from_pb
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc, generation_pb2, types_pb2, workers_pb2
from rpc.status import RemoteFault
from tests.router.conftest import OpenStage, Stage
from tests.router.fake_model import expected, expected_logprobs, write_tokenizer
from tests.router.script import BOUND_S, Gate

PROMPT = (5, 6, 7)


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer grammars can be compiled for; the fake one's cannot."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


def only_work(on: Stage) -> workers_pb2.WorkRequest:
    """What both workers were told, once."""
    [prefill], [decode] = on["p0"].prefills, on["d0"].decodes
    assert prefill.work == _without_time(decode.work, prefill.work.timeout_s)
    return prefill.work


def _without_time(work: workers_pb2.WorkRequest, timeout_s: float) -> workers_pb2.WorkRequest:
    same = workers_pb2.WorkRequest()
    same.CopyFrom(work)
    same.timeout_s = timeout_s
    return same


# --- log-probabilities ------------------------------------------------------------------------

ANSWERS: list[tuple[str, int, dict[str, Any]]] = [
    # id                    per frame  options
    ("one by one", 1, {"max_tokens": 12}),
    ("eight in a frame", 8, {"max_tokens": 20}),
    ("from prefill alone", 1, {"max_tokens": 1}),
    ("several choices", 4, {"max_tokens": 9, "n": 3}),
]


@pytest.mark.parametrize("num_top", [0, 3])
@pytest.mark.parametrize(
    ("per_frame", "options"), [c[1:] for c in ANSWERS], ids=[c[0] for c in ANSWERS]
)
async def test_every_token_has_its_log_probabilities(
    stage: OpenStage, num_top: int, per_frame: int, options: dict[str, Any]
) -> None:
    on = await stage("pd")
    on["d0"].script.num_tokens_per_frame = per_frame
    answers = await on.client.complete(token_ids=PROMPT, seed=3, logprobs=num_top, **options)
    for child, answer in enumerate(answers):
        want = expected(PROMPT, options["max_tokens"], seed=3, child=child)
        assert list(answer.token_ids) == want
        assert list(answer.logprobs) == expected_logprobs(want, num_top)


async def test_a_stop_string_cuts_them_too(stage: OpenStage) -> None:
    on = await stage("pd")
    on["d0"].script.num_tokens_per_frame = 8
    want = expected(PROMPT, 5, seed=3)
    stop = f"w{want[3]} w{want[4]}"
    [answer] = await on.client.complete(
        token_ids=PROMPT, max_tokens=20, seed=3, stop=[stop], logprobs=1
    )
    assert list(answer.token_ids) == want
    assert list(answer.logprobs) == expected_logprobs(want, 1)


async def test_there_are_none_unless_asked_for(stage: OpenStage) -> None:
    on = await stage("pd")
    [answer] = await on.client.complete(token_ids=PROMPT, max_tokens=4, seed=3)
    assert answer.logprobs == ()


@pytest.mark.parametrize("num_logprobs", [1, 3])
def test_a_router_that_sends_too_few_or_too_many_is_at_fault(num_logprobs: int) -> None:
    delta = generation_pb2.Delta(
        token_ids=[1, 2], logprobs=[types_pb2.TokenLogprobs()] * num_logprobs
    )
    with pytest.raises(RemoteFault, match=f"{num_logprobs} log-probabilities with 2 tokens"):
        event_from_pb(generation_pb2.GenerateResponse(delta=delta))


# --- grammars ---------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
GRAMMARS: list[tuple[str, dict[str, Any], types_pb2.Grammar]] = [
    ("schema", {"json_schema": SCHEMA}, types_pb2.Grammar(json_schema=json.dumps(SCHEMA))),
    ("schema as text", {"json_schema": "{ }"}, types_pb2.Grammar(json_schema="{ }")),
    ("regex", {"regex": "[ab]+"}, types_pb2.Grammar(regex="[ab]+")),
    ("any object", {"json_object": True}, types_pb2.Grammar(json_object=True)),
]


@pytest.mark.parametrize(
    ("options", "want"), [c[1:] for c in GRAMMARS], ids=[c[0] for c in GRAMMARS]
)
async def test_a_grammar_reaches_both_workers(
    stage: OpenStage, tiny_dir: Path, options: dict[str, Any], want: types_pb2.Grammar
) -> None:
    on = await stage("pd", model=tiny_dir)
    await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=3, **options)
    assert only_work(on).sampling.grammar == want


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("bad regex", {"regex": "("}, "sampling.grammar"),
    ("bad schema", {"json_schema": "{"}, "sampling.grammar"),
    ("schema of nothing known", {"json_schema": '{"type": "number!"}'}, "sampling.grammar"),
    ("with min_tokens", {"regex": "a", "min_tokens": 1}, "stop.min_tokens"),
    ("with ignore_eos", {"regex": "a", "ignore_eos": True}, "stop.ignore_eos"),
    ("too long", {"regex": "a" * 65_537}, "sampling.grammar"),
]


@pytest.mark.parametrize(
    ("options", "field"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
async def test_a_bad_grammar_is_refused_at_the_door(
    stage: OpenStage, tiny_dir: Path, options: dict[str, Any], field: str
) -> None:
    on = await stage("pd", model=tiny_dir)
    with pytest.raises(InvalidRequest) as caught:
        await on.client.complete(token_ids=PROMPT, max_tokens=3, **options)
    assert [v.field for v in caught.value.violations] == [field]
    assert (on["p0"].prefills, on["d0"].decodes) == ([], [])


def test_two_grammars_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="got json_schema and regex"):
        build_message("w5", {"json_schema": "{}", "regex": "a", "json_object": False})


# --- defaults of the model --------------------------------------------------------------------

WISHES = {
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "max_new_tokens": 7,
}


@pytest.fixture
def wishing_dir(tmp_path: Path) -> Path:
    """A model with a generation_config.json."""
    (tmp_path / "generation_config.json").write_text(json.dumps(WISHES))
    return write_tokenizer(tmp_path)


async def test_what_is_left_open_is_as_the_model_wants_it(
    stage: OpenStage, wishing_dir: Path
) -> None:
    on = await stage("pd", model=wishing_dir)
    [answer] = await on.client.complete(token_ids=PROMPT, top_k=0, seed=3)
    assert len(answer.token_ids) == WISHES["max_new_tokens"]
    work = only_work(on)
    # Given is given, be it 0.
    assert work.sampling.top_k == 0
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        assert getattr(work.sampling, name) == WISHES[name]


async def test_a_default_limit_refuses_nobody(stage: OpenStage, wishing_dir: Path) -> None:
    on = await stage("pd", model=wishing_dir)
    long_prompt = PROMPT * 1364  # leaves 4 tokens of the context
    [answer] = await on.client.complete(token_ids=long_prompt, seed=3)
    assert len(answer.token_ids) == 4
    with pytest.raises(InvalidRequest, match=r"stop\.min_tokens: must be 0 to 7"):
        await on.client.complete(token_ids=PROMPT, min_tokens=8)


def test_drafts_tell_given_from_absent() -> None:
    defaults = SamplingParams(temperature=0.5, top_p=0.5)
    message = generation_pb2.GenerateRequest(sampling=types_pb2.SamplingParams(temperature=0.0))
    sampling = draft_from_pb(message, defaults).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.5, 0)


async def test_a_router_does_not_start_with_defaults_that_cannot_be(
    stage: OpenStage, wishing_dir: Path
) -> None:
    (wishing_dir / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(ModelError, match=r"generation_config\.json: top_p: must be above 0 to 1"):
        await stage("pd", model=wishing_dir)


# --- tenants and priorities -------------------------------------------------------------------


async def test_tenant_and_priority_reach_both_workers(stage: OpenStage) -> None:
    on = await stage("pd")
    await on.client.complete(token_ids=PROMPT, max_tokens=3, tenant="acme", priority=-3)
    work = only_work(on)
    assert (work.tenant, work.priority) == ("acme", -3)


async def test_tenants_take_turns_and_priority_goes_first(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(max_running=1))
    gate = on["p0"].script.prefill_gate = Gate()
    arrivals = [("a", 0), ("a", 0), ("a", 0), ("b", 0), ("c", 1)]
    async with asyncio.TaskGroup() as group:
        for num_before, (tenant, priority) in enumerate(arrivals):
            await _until_arrived(on, num_before)
            group.create_task(
                on.client.complete(token_ids=PROMPT, max_tokens=3, tenant=tenant, priority=priority)
            )
        await _until_arrived(on, len(arrivals))
        gate.open.set()
    assert [prefill.work.tenant for prefill in on["p0"].prefills] == ["a", "c", "b", "a", "a"]


async def _until_arrived(on: Stage, num: int) -> None:
    async with (
        dial(on.routers[0].address, plane=Plane.CLIENT) as channel,
        asyncio.timeout(BOUND_S),
    ):
        stub = cluster_pb2_grpc.ClusterStub(channel)
        status = cluster_pb2.StatusReply()
        while status.num_requests + status.num_queued < num:
            status = await stub.Status(cluster_pb2.StatusRequest(), timeout=BOUND_S)


# --- choices ----------------------------------------------------------------------------------


async def test_choices_of_one_request_are_prefilled_in_one_place(stage: OpenStage) -> None:
    on = await stage("pppd")
    await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=3, n=4)
    assert sorted(len(on[name].prefills) for name in ("p0", "p1", "p2")) == [0, 0, 4]


async def test_requests_are_not(stage: OpenStage) -> None:
    on = await stage("pppd")
    for _ in range(3):
        await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=3)
    assert [len(on[name].prefills) for name in ("p0", "p1", "p2")] == [1, 1, 1]
