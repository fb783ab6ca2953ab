"""An instance changes its role under way: nothing is dropped, and only the newest is obeyed."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest

from core.errors import BatonError, InvalidRequest, StaleTerm, Unsupported, WrongState
from core.member import Role
from core.work import WorkRequest
from deploy.instance import announce
from registry.memory import MemoryRegistry
from rpc.convert_report import role_from_pb, role_to_pb
from rpc.pb import types_pb2
from rpc.pb.cluster_pb2 import ChangeRoleRequest, DrainRequest, InstanceStatus, WorkloadRequest
from rpc.pb.cluster_pb2_grpc import ClusterStub
from rpc.status import error_from
from tests.deploy.instances import (
    CONFIG,
    WAIT_S,
    Running,
    Subscribed,
    decode_request,
    events,
    instance,
    prefill_request,
    subscribed,
    work,
)
from tests.registry.support import news, watching
from tests.worker_host.fake_engine import expected_tokens

SCARCE = replace(
    CONFIG,
    engine=replace(CONFIG.engine, num_blocks=16, prefix_cache=False),
    handoff=replace(CONFIG.handoff, lease_ttl_s=WAIT_S, unknown_handoff_wait_s=WAIT_S),
)
"""64 tokens: two of the long prompts. Who waits is not given up."""
NUM_PROMPT_TOKENS = 26
NUM_OUTPUT_TOKENS = 5


async def change(at: Running, role: Role, term: int = 0) -> Role:
    """Give it another role; returns the one before."""
    message = ChangeRoleRequest(role=role_to_pb(role), term=term)
    reply = await ClusterStub(at.channel).ChangeRole(message, timeout=WAIT_S)
    return role_from_pb(reply.previous)


async def refusal(call: "grpc.aio.UnaryUnaryCall[Any, Any]") -> BatonError:
    """Why it was not done."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from(caught.value)


def long_requests(name: str, num: int) -> list[WorkRequest]:
    """Of prompts that share nothing."""
    return [
        work(
            tuple((7 * n + len(name) + i) % 97 for i in range(NUM_PROMPT_TOKENS)),
            handoff_id=f"{name}-{n}/0",
            max_tokens=NUM_OUTPUT_TOKENS,
        )
        for n in range(num)
    ]


class Asking:
    """A router's part, for requests on two instances in either direction."""

    def __init__(self, group: asyncio.TaskGroup, routers: dict[str, Subscribed]) -> None:
        self._group = group
        self._routers = routers
        """By address."""

    async def ask(self, requests: Sequence[WorkRequest], prefill: Running, decode: Running) -> None:
        """Begin them: decode first, so that it is known there before the KV is."""
        await self.begin_decodes(requests, prefill, decode)
        self.begin_prefills(requests, prefill)

    async def begin_decodes(
        self, requests: Sequence[WorkRequest], prefill: Running, decode: Running
    ) -> None:
        """Accepted when this returns."""
        for request in requests:
            await decode.decode.Decode(decode_request(request, prefill))

    def begin_prefills(self, requests: Sequence[WorkRequest], prefill: Running) -> None:
        """Sent some time after this returns."""
        for request in requests:
            self._group.create_task(events(prefill.prefill.Prefill(prefill_request(request))))

    async def all_right(self, requests: Sequence[WorkRequest], decode: Running) -> None:
        """They end with their tokens."""
        router = self._routers[decode.address]
        heard = [router.heard(request.handoff_id) for request in requests]
        await router.until(lambda: all(one.is_over for one in heard))
        assert [one.error for one in heard] == [""] * len(requests)
        for request, one in zip(requests, heard, strict=True):
            want = expected_tokens(request.prompt_token_ids, request.stop.max_tokens)
            assert one.token_ids == want


async def test_roles_change_while_requests_run_both_ways() -> None:
    async with (
        instance(Role.PREFILL, SCARCE) as one,
        instance(Role.DECODE, SCARCE) as two,
        subscribed(one) as at_one,
        subscribed(two) as at_two,
        asyncio.TaskGroup() as group,
    ):
        router = Asking(group, {one.address: at_one, two.address: at_two})
        first, second, third, fourth = (long_requests(n * "x", 6) for n in (1, 2, 3, 4))
        with two.runner.holding():
            await router.ask(first, one, two)
            await two.runner.held()
            # An answer is in a step on the one, and prompts fill the other: now each is what the
            # other was.
            assert await change(one, Role.DECODE) is Role.PREFILL
            assert await change(two, Role.PREFILL) is Role.DECODE
            await router.ask(second, two, one)
        await router.all_right(first[:3], two)
        assert await change(one, Role.MIXED) is Role.DECODE
        await router.ask(third, one, one)
        assert await change(two, Role.MIXED) is Role.PREFILL
        await router.ask(fourth, two, two)
        await router.all_right(first, two)
        await router.all_right(second, one)
        await router.all_right(third, one)
        await router.all_right(fourth, two)
        await one.all_returned()
        await two.all_returned()


async def test_those_who_swap_their_roles_do_not_wait_for_each_other() -> None:
    """Prompts of each, on their way to the other, would fill both: neither had room for any."""
    async with (
        instance(Role.PREFILL, SCARCE) as one,
        instance(Role.DECODE, SCARCE) as two,
        subscribed(one) as at_one,
        subscribed(two) as at_two,
        asyncio.TaskGroup() as group,
    ):
        router = Asking(group, {one.address: at_one, two.address: at_two})
        there, back = long_requests("there", 2), long_requests("back", 2)
        first = prefill_request(work((1,), handoff_id="first/0"), only_first_token=True)
        with one.runner.holding():
            group.create_task(events(one.prefill.Prefill(first)))
            await one.runner.held()
            await router.ask(there, one, two)
            # It waits for two handoffs, and reads prompts from now on.
            await change(two, Role.PREFILL)
            router.begin_prefills(back, two)
            await until(two, lambda at: at.integrity.num_prefills == len(back))
            await until(two, lambda at: at.load.num_pending_prompt_tokens <= NUM_PROMPT_TOKENS)
            await until(one, lambda at: at.integrity.num_prefills == 1 + len(there))
        await until(one, lambda at: at.load.num_pending_prompt_tokens == 0)
        await change(one, Role.DECODE)
        await router.begin_decodes(back, two, one)
        await router.all_right(there, two)
        await router.all_right(back, one)
        await one.all_returned()
        await two.all_returned()


async def until(at: Running, holds: Callable[[InstanceStatus], bool]) -> None:
    """It says so of itself; bounded."""
    async with asyncio.timeout(WAIT_S):
        while not holds(await at.status()):
            pass


async def test_whoever_looks_sees_the_new_role() -> None:
    async with (
        instance(Role.PREFILL) as changing,
        asyncio.TaskGroup() as group,
        AsyncExitStack() as stack,
    ):
        registry, post = MemoryRegistry(), changing.assembled.post
        watch = await stack.enter_async_context(watching(registry))
        announcing = group.create_task(announce(registry, post, asyncio.Event()))
        member = post.member
        for role in (Role.PREFILL, Role.DECODE, Role.MIXED, Role.PREFILL):
            previous = await change(changing, role)
            assert role_from_pb((await changing.status()).role) is role
            while previous is not role and await news(watch) != (replace(member, role=role),):
                pass
        announcing.cancel()


REFUSED = [
    # id          role           term  want
    ("no role", types_pb2.ROLE_UNSPECIFIED, 9, InvalidRequest),
    ("a router's", types_pb2.ROLE_ROUTER, 9, InvalidRequest),
    ("of the future", 99, 9, InvalidRequest),
    ("an older term", types_pb2.ROLE_DECODE, 4, StaleTerm),
]


@pytest.mark.parametrize(
    ("role", "term", "want"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
async def test_what_is_refused_changes_nothing(
    role: "types_pb2.Role.ValueType", term: int, want: type[BatonError]
) -> None:
    async with instance(Role.PREFILL) as asked:
        stub, member = ClusterStub(asked.channel), asked.assembled.post.member
        await change(asked, Role.PREFILL, term=5)
        error = await refusal(stub.ChangeRole(ChangeRoleRequest(role=role, term=term)))
        assert type(error) is want
        assert asked.assembled.post.member == member
        # Nor was the term heard of what was refused for another reason.
        assert await change(asked, Role.MIXED, term=5) is Role.PREFILL


async def test_one_term_holds_for_all_that_controllers_ask() -> None:
    async with instance(Role.PREFILL) as asked:
        stub = ClusterStub(asked.channel)
        await change(asked, Role.DECODE, term=5)
        error = await refusal(stub.Drain(DrainRequest(timeout_s=WAIT_S, term=4)))
        assert isinstance(error, StaleTerm)
        assert str(error) == "term 4 is behind 5: a newer controller has asked here"
        assert not (await asked.status()).load.draining
        # What is a router's alone to tell changes nothing either.
        assert isinstance(await refusal(stub.Workload(WorkloadRequest())), Unsupported)
        # A person may, whatever controllers there were.
        assert await change(asked, Role.MIXED) is Role.DECODE


async def test_who_drains_keeps_its_role() -> None:
    async with instance(Role.DECODE) as leaving, instance(Role.PREFILL) as prefill:
        request = work()
        async with subscribed(leaving), asyncio.TaskGroup() as group:
            with leaving.runner.holding():
                await leaving.decode.Decode(decode_request(request, prefill))
                group.create_task(events(prefill.prefill.Prefill(prefill_request(request))))
                await leaving.runner.held()
                stub = ClusterStub(leaving.channel)
                await stub.Drain(DrainRequest(timeout_s=WAIT_S, term=1), timeout=WAIT_S)
                message = ChangeRoleRequest(role=types_pb2.ROLE_MIXED, term=1)
                error = await refusal(stub.ChangeRole(message))
                assert isinstance(error, WrongState)
                assert str(error) == "draining: it ends as decode"
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait((leaving.task,))
