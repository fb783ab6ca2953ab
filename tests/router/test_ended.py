"""The list of ended requests: in order, from a place on, bounded; and `Cluster/Workload`."""

import asyncio

import grpc
import grpc.aio
import pytest

from core.config import RouterConfig
from core.errors import InvalidRequest, Saturated
from core.ids import RequestId
from core.timing import PrefillTiming
from router.ended import MAX_ENDED, EndedRequests
from router.record import ChoiceRecord, Outcome, RequestRecord
from router.timeline import Timeline
from rpc.dial import dial
from rpc.options import Plane
from rpc.pb import cluster_pb2, cluster_pb2_grpc
from tests.router.conftest import OpenStage, Stage
from tests.router.script import BOUND_S, Gate
from tests.router.test_slo import BUSY, busy

OK = Outcome("OK", "STOP")
REFUSED = Outcome("RESOURCE_EXHAUSTED", "SATURATED")


def record(at_s: float, outcome: Outcome = OK, *, num_choices: int = 1) -> RequestRecord:
    """Its prompt's length is the moment at which it came."""
    made = RequestRecord(
        request_id=RequestId(f"at {at_s}"), door="grpc", arrived_at_s=at_s, arrived_at_unix_s=1e9
    )
    made.num_prompt_tokens = int(at_s)
    for index in range(num_choices):
        line = Timeline(arrived_at_s=at_s, prefill=PrefillTiming(num_hit_tokens=2))
        line.left(1, at_s + 0.5)
        line.left(4, at_s + 0.9)
        made.choices.append(ChoiceRecord(index=index, timeline=line))
    made.ended(outcome, at_s + 1.0)
    return made


def filled(num: int) -> EndedRequests:
    ended = EndedRequests()
    for at in range(num):
        ended.ended(record(float(at)))
    return ended


def asked(ended: EndedRequests, after: int = 0, most: int = 0) -> cluster_pb2.WorkloadReply:
    return ended.reply(cluster_pb2.WorkloadRequest(after=after, max=most), 1e6, num_open=3)


@pytest.mark.parametrize("num_choices", [1, 3])
def test_one_in_numbers_is_its_first_choice(num_choices: int) -> None:
    ended = EndedRequests()
    ended.ended(record(40.0, num_choices=num_choices))
    reply = ended.reply(cluster_pb2.WorkloadRequest(), 42.0, num_open=3)
    [one] = reply.requests
    assert (one.num_prompt_tokens, one.num_hit_tokens, one.num_output_tokens) == (40, 2, 5)
    assert (one.arrived_ago_s, one.ttft_s, one.status) == (2.0, 0.5, "OK")
    assert one.tpot_s == pytest.approx(0.1)
    assert (reply.next, reply.num_missed, reply.num_open) == (1, 0, 3)


def test_one_that_was_refused_is_told_with_what_is_known_of_it() -> None:
    ended = EndedRequests()
    ended.ended(record(40.0, REFUSED, num_choices=0))
    [one] = asked(ended).requests
    assert (one.num_prompt_tokens, one.num_output_tokens, one.ttft_s) == (40, 0, 0.0)
    assert one.status == "RESOURCE_EXHAUSTED"


PLACES = [
    # id                     ended            after  max  first          number     missed
    ("nothing yet", 0, 0, 0, 0, 0, 0),
    ("all", 10, 0, 0, 0, 10, 0),
    ("from a place on", 10, 4, 0, 4, 6, 0),
    ("not more than asked", 10, 4, 3, 4, 3, 0),
    ("nothing new", 10, 10, 0, 10, 0, 0),
    ("another's place", 10, 11, 0, 0, 10, 0),
    ("forgotten", MAX_ENDED + 100, 40, 7, 100, 7, 60),
    ("not forgotten", MAX_ENDED + 100, 100, 0, 100, MAX_ENDED, 0),
]


@pytest.mark.parametrize(
    ("num", "after", "most", "first", "got", "missed"),
    [c[1:] for c in PLACES],
    ids=[c[0] for c in PLACES],
)
def test_places(num: int, after: int, most: int, first: int, got: int, missed: int) -> None:
    reply = asked(filled(num), after, most)
    told = [each.num_prompt_tokens for each in reply.requests]
    assert told == list(range(first, first + got))
    assert (reply.next, reply.num_missed) == (first + got, missed)


@pytest.mark.parametrize("most", [1, 7, 1000, MAX_ENDED])
@pytest.mark.parametrize("num", [1, 999, MAX_ENDED, MAX_ENDED + 1, 3 * MAX_ENDED])
def test_whoever_follows_is_told_of_each_once_or_how_many_were_missed(num: int, most: int) -> None:
    ended, told, after, missed = filled(num), list[int](), 0, 0
    while (reply := asked(ended, after, most)).requests:
        told += [each.num_prompt_tokens for each in reply.requests]
        after, missed = reply.next, missed + reply.num_missed
    assert told == list(range(missed, num))
    assert len(told) <= MAX_ENDED


def test_every_list_has_a_name_of_its_own() -> None:
    assert asked(filled(1)).incarnation != asked(filled(1)).incarnation


def test_more_than_one_reply_holds_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=f"max: must be 0 to {MAX_ENDED}"):
        asked(filled(1), most=MAX_ENDED + 1)


async def workload(on: Stage, *, after: int = 0, most: int = 0) -> cluster_pb2.WorkloadReply:
    async with dial(on.routers[0].address, plane=Plane.CLIENT) as channel:
        stub = cluster_pb2_grpc.ClusterStub(channel)
        message = cluster_pb2.WorkloadRequest(after=after, max=most)
        return await stub.Workload(message, timeout=BOUND_S)


async def test_a_router_tells_what_ended(stage: OpenStage) -> None:
    on = await stage("pd")
    await on.client.complete("w5 w6 w7", max_tokens=4)
    reply = await workload(on)
    [one] = reply.requests
    assert (one.num_prompt_tokens, one.num_output_tokens, one.status) == (3, 4, "OK")
    assert 0 < one.ttft_s <= one.arrived_ago_s
    assert one.tpot_s > 0
    await on.client.complete("w5 w6", max_tokens=2)
    later = await workload(on, after=reply.next)
    assert [each.num_prompt_tokens for each in later.requests] == [2]
    assert (later.incarnation, later.next) == (reply.incarnation, 2)


async def test_one_that_is_refused_and_one_that_runs(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(slo_ttft_s=5.0))
    await on.client.complete(token_ids=[5, 6, 7], max_tokens=3)
    await busy(on, BUSY)
    with pytest.raises(Saturated):
        await on.client.complete(token_ids=[5, 6, 7, 8], max_tokens=3)
    [_, refused] = (await workload(on)).requests
    assert (refused.status, refused.num_prompt_tokens) == ("RESOURCE_EXHAUSTED", 4)
    await busy(on, 0)
    gate = on["p0"].script.prefill_gate = Gate()
    async with asyncio.TaskGroup() as group:
        group.create_task(on.client.complete("w5", max_tokens=2))
        await gate.wait_reached()
        assert (await workload(on)).num_open == 1
        gate.open.set()
    reply = await workload(on)
    assert (reply.num_open, len(reply.requests)) == (0, 3)


async def test_bad_input_is_typed(stage: OpenStage) -> None:
    on = await stage("pd")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await workload(on, most=MAX_ENDED + 1)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
