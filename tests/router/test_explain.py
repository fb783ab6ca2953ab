"""`Cluster/Explain` and `baton explain`: what became of a request, by the router that took it."""

import asyncio
import json

import grpc.aio
import pytest
from typer.testing import CliRunner

from cli.main import app
from core.config import RouterConfig
from core.errors import (
    AttemptsExhausted,
    DuplicateRequest,
    InvalidRequest,
    Saturated,
    UnknownRequest,
)
from rpc.pb import cluster_pb2
from rpc.status import error_from
from tests.router.asking import explain
from tests.router.conftest import OpenStage, Stage
from tests.router.script import Gate

WHOLES = ("ttft", "first_gap", "rest")


async def test_a_plain_answer(stage: OpenStage) -> None:
    on = await stage("pd")
    await on.client.complete("w5 w6 w7", max_tokens=4, request_id="it", tenant="me")
    told = await explain(on, "it")
    assert (told.request_id, told.router_id, told.door) == ("it", "router-0", "grpc")
    assert (told.status, told.reason, told.message) == ("OK", "LENGTH", "")
    assert (told.model, told.tenant) == ("fake", "me")
    assert (told.num_prompt_tokens, told.num_output_tokens) == (3, 4)
    assert told.admitted
    assert told.arrived_at_unix_s > 1.6e9
    [choice] = told.choices
    assert choice.num_output_tokens == 4
    assert 0 < choice.ttft_s <= choice.e2e_s <= told.duration_s
    assert_sums(choice)
    [attempt] = choice.attempts
    assert (attempt.prefill_instance_id, attempt.decode_instance_id) == ("p0", "d0")
    assert not attempt.losses
    assert any(reason.startswith("prefill p0: 2 able") for reason in attempt.reasons)
    assert any("score" in reason for reason in attempt.reasons)
    assert told.verdict.startswith("TTFT ")


def assert_sums(choice: cluster_pb2.ExplainedChoice) -> None:
    sums = [sum(s.duration_s for s in choice.spans if s.part_of == whole) for whole in WHOLES]
    assert sums[:2] == pytest.approx([choice.ttft_s, choice.first_gap_s])
    assert sum(sums) == pytest.approx(choice.e2e_s)


async def test_who_came_next_is_told(stage: OpenStage) -> None:
    on = await stage("pppppd")
    await on.client.complete("w5", max_tokens=2, request_id="it")
    [attempt] = (await explain(on, "it")).choices[0].attempts
    others = [reason for reason in attempt.reasons if " next p" in reason]
    assert len(others) == 3
    assert all(reason.startswith(f"prefill {attempt.prefill_instance_id}") for reason in others)


async def test_an_attempt_that_was_lost(stage: OpenStage) -> None:
    on = await stage("ppd")
    gate = on["p0"].script.prefill_gate = on["p1"].script.prefill_gate = Gate()
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(on.client.complete("w5", max_tokens=3, request_id="it"))
        await gate.wait_reached()
        first = on["p0"] if on["p0"].prefills else on["p1"]
        await first.kill()
        gate.open.set()
    assert asked.result()[0].finished.num_output_tokens == 3
    told = await explain(on, "it")
    [choice] = told.choices
    lost, last = choice.attempts
    assert (lost.prefill_instance_id, choice.num_attempts) == (first.name, 2)
    assert [loss.reason for loss in lost.losses] == ["PEER_LOST"]
    assert last.prefill_instance_id != first.name
    assert last.decode_instance_id == "d0", "it was kept"
    assert not last.losses
    assert last.start_s >= lost.start_s + lost.duration_s
    assert_sums(choice)
    [spent] = [span for span in choice.spans if span.name == "lost_attempts"]
    assert spent.duration_s > 0
    assert "placed 2 times: PEER_LOST" in told.verdict


async def test_one_that_runs(stage: OpenStage) -> None:
    on = await stage("pd")
    gate = on["p0"].script.prefill_gate = Gate()
    async with asyncio.TaskGroup() as group:
        group.create_task(on.client.complete("w5", max_tokens=2, request_id="it"))
        await gate.wait_reached()
        told = await explain(on, "it")
        gate.open.set()
    assert (told.status, told.choices[0].status) == ("RUNNING", "RUNNING")
    assert told.verdict.endswith("it waits for its first token")
    assert [s.name for s in told.choices[0].spans][-1] == "waiting"


async def test_refused_by_validation(stage: OpenStage) -> None:
    on = await stage("pd")
    with pytest.raises(InvalidRequest):
        await on.client.complete("", request_id="it", tenant="x")
    told = await explain(on, "it")
    assert (told.status, told.message) == ("INVALID_ARGUMENT", "text")
    assert (told.tenant, told.admitted, len(told.choices)) == ("", False, 0)
    assert told.verdict.startswith("refused after")


async def test_refused_by_admission(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(max_running=1, max_queued=1))
    gate = on["p0"].script.prefill_gate = Gate()
    async with asyncio.TaskGroup() as group:
        group.create_task(on.client.complete("w5", max_tokens=2))
        await gate.wait_reached()
        waiting = group.create_task(on.client.complete("w6", max_tokens=2, request_id="waits"))
        told = await known(on, "waits")
        while told is None or not told.num_prompt_tokens:
            told = await known(on, "waits")
        assert told.verdict.endswith("it waits for admission, 0 before it when it came")
        with pytest.raises(Saturated):
            await on.client.complete("w7", request_id="refused")
        gate.open.set()
    assert waiting.result()
    refused = await explain(on, "refused")
    assert refused.reason == "SATURATED"
    assert "1 requests run and 1 wait" in refused.verdict
    told = await explain(on, "waits")
    assert told.num_running_before == 1
    waits = {span.name: span.duration_s for span in told.choices[0].spans}
    assert waits["admission"] > 0


async def known(on: Stage, request_id: str) -> cluster_pb2.ExplainReply | None:
    try:
        return await explain(on, request_id)
    except grpc.aio.AioRpcError:
        return None


async def test_one_that_failed(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(max_attempts=1))
    on["d0"].script.output_errors = {2: "UNAVAILABLE"}
    with pytest.raises(AttemptsExhausted):
        await on.client.complete("w5", max_tokens=4, request_id="it")
    told = await explain(on, "it")
    assert (told.status, told.reason) == ("UNAVAILABLE", "ATTEMPTS_EXHAUSTED")
    assert told.verdict.startswith("failed after")
    assert told.choices[0].attempts[0].losses[0].reason == "PEER_LOST"
    assert told.num_output_tokens in (1, 2)


async def test_every_choice_is_told(stage: OpenStage) -> None:
    on = await stage("ppdd")
    await on.client.complete("w5", max_tokens=3, n=3, request_id="it")
    told = await explain(on, "it")
    assert [choice.index for choice in told.choices] == [0, 1, 2]
    assert told.num_output_tokens == 9
    for choice in told.choices:
        assert_sums(choice)


async def test_a_duplicate_is_not_the_request(stage: OpenStage) -> None:
    on = await stage("pd")
    gate = on["p0"].script.prefill_gate = Gate()
    async with asyncio.TaskGroup() as group:
        group.create_task(on.client.complete("w5", max_tokens=2, request_id="it"))
        await gate.wait_reached()
        with pytest.raises(DuplicateRequest):
            await on.client.complete("w5", request_id="it")
        assert (await explain(on, "it")).status == "RUNNING"
        gate.open.set()
    assert (await explain(on, "it")).status == "OK"


async def test_nobody_knows_it(stage: OpenStage) -> None:
    on = await stage("pd")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await explain(on, "never")
    error = error_from(caught.value)
    assert type(error) is UnknownRequest
    assert "1024" in str(error)
    assert "256" in str(error)


async def test_the_command_asks_and_draws(stage: OpenStage) -> None:
    on = await stage("pd")
    await on.client.complete("w5", max_tokens=4, request_id="it")
    address = on.routers[0].address

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["explain", *arguments, "--address", address])
        return result.exit_code, result.output

    status, output = await asyncio.to_thread(run, "it")
    assert status == 0
    for word in ("TTFT", "router queue", "█", "attempt", "p0", "d0", "it: LENGTH"):
        assert word in output
    status, output = await asyncio.to_thread(run, "it", "--json")
    assert (status, json.loads(output)["request_id"]) == (0, "it")
    status, output = await asyncio.to_thread(run, "never")
    assert status == 1
    assert output.startswith("UNKNOWN_REQUEST: not among the last 1024")
