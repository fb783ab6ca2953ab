"""What was served reaches the planner, its plan the instances: roles change under load."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from rpc.pb import controller_pb2, types_pb2
from tests.core.profiles import profile
from tests.e2e.asking import Answer, questions
from tests.e2e.controlled import (
    Controlled,
    controlled,
    deployment,
    plan_toml,
    routers_of,
    under_load,
)
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import OwnLoop

pytestmark = pytest.mark.ray

PLAN_S = 240.0
"""The first time the planner's simulator is compiled."""
WATCHED_S = 60.0
ASK_AGAIN_S = 2.0
ONLINE = "[online]\nwindow_s = 20.0\n"


@pytest.fixture(scope="module")
def cluster(tiny_dir: Path, own_state: Path) -> Iterator[OwnLoop[Controlled]]:
    """Two prefill instances and one for decode, and a profile by which decode takes long."""
    wanted = deployment(tiny_dir, plan_toml(2, 1, num_routers=1) + ONLINE)
    wanted = replace(wanted, profile_json=profile().to_json())
    with OwnLoop(controlled("replan", wanted)) as loop:
        yield loop


def test_roles_follow_what_was_served(cluster: OwnLoop[Controlled], tiny_oracle: Oracle) -> None:
    replies = list[controller_pb2.ReplanReply]()
    answers = cluster.run(_replan_under_load(cluster.value, replies), 400.0)
    dry, done = replies
    print("\n", *done.reasons, sep="\n  ")
    assert not dry.applied
    assert done.applied
    for reply in replies:
        assert "[prefill]\nreplicas = 1" in reply.plan_toml
        assert "[decode]\nreplicas = 2" in reply.plan_toml
    print("  " + compare_all(tiny_oracle, list({a.question: a for a in answers}.values())))
    cluster.run(cluster.value.check_books())


async def _replan_under_load(
    cluster: Controlled, replies: list[controller_pb2.ReplanReply]
) -> list[Answer]:
    before = await cluster.settled()

    async def work() -> None:
        replies.append(await _replan(cluster, dry_run=True))
        assert {m.name for m in (await cluster.settled()).members if is_decode(m)} == {
            m.name for m in before.members if is_decode(m)
        }
        replies.append(await _replan(cluster, dry_run=False))
        after = await cluster.until(lambda s: s.settled and sum(map(is_decode, s.members)) == 2)
        # Nothing was loaded for it.
        assert {m.name for m in after.members} == {m.name for m in before.members}

    # Short prompts and long answers.
    asked = questions(12, vocab_size=512, prompt_tokens=range(3, 6), output_tokens=range(40, 60))
    return await under_load(routers_of(before), work(), asked=asked)


async def _replan(cluster: Controlled, *, dry_run: bool) -> controller_pb2.ReplanReply:
    """Again until enough was served."""
    request = controller_pb2.ReplanRequest(dry_run=dry_run)
    async with asyncio.timeout(WATCHED_S + PLAN_S):
        while True:
            try:
                reply = await cluster.call("Replan", request, timeout_s=PLAN_S)
                assert isinstance(reply, controller_pb2.ReplanReply)
                return reply
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                await asyncio.sleep(ASK_AGAIN_S)


def is_decode(member: controller_pb2.MemberState) -> bool:
    return member.role == types_pb2.ROLE_DECODE
