"""An instance's role, which changes while it serves."""

import asyncio

import pytest

from core.config import WorkerConfig
from core.member import Member, Role
from registry.heartbeat import keep_announced
from registry.memory import MemoryRegistry
from tests.registry.support import make_member, news, watching
from worker_host.role import INSTANCE_ROLES, Post, budget_of

WORKER = WorkerConfig(prefill_step_tokens=256, mixed_step_tokens=64)
LONG_S = 3600.0
"""Never waited out: the bound of a wait that something else has to end."""


def post_of(role: Role) -> tuple[Post, asyncio.Event]:
    """And what wakes the step loop."""
    work = asyncio.Event()
    return Post(make_member(role=role), WORKER, work=work), work


@pytest.mark.parametrize("new", INSTANCE_ROLES)
@pytest.mark.parametrize("old", INSTANCE_ROLES)
def test_a_change_is_as_if_it_had_begun_so(old: Role, new: Role) -> None:
    post, work = post_of(old)
    assert post.change(new) is old
    assert post.member == make_member(role=new)
    assert post.budget(has_answers=False) == budget_of(new, WORKER)
    assert work.is_set() == (old is not new)


FLOORS = [
    # role       with answers: share of 100 blocks
    (Role.PREFILL, 50),
    (Role.DECODE, 50),
    (Role.MIXED, 50),
]


@pytest.mark.parametrize(("role", "num_blocks"), FLOORS)
def test_answers_keep_their_floor_in_every_role(role: Role, num_blocks: int) -> None:
    post, _ = post_of(role)
    budget = post.budget(has_answers=True)
    assert budget.max_prompt_blocks(100) == num_blocks
    assert budget.step_tokens(9) == post.budget(has_answers=False).step_tokens(9)


async def test_a_change_ends_the_wait_for_it_once() -> None:
    post, _ = post_of(Role.PREFILL)
    post.change(Role.DECODE)
    async with asyncio.timeout(10):
        await post.await_change(LONG_S)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(post.await_change(LONG_S))
        await asyncio.sleep(0)
        post.change(Role.DECODE)  # it is one already
        await asyncio.sleep(0)
        assert not waiting.done()
        post.change(Role.MIXED)
    await post.await_change(0.0)


async def test_a_change_is_announced_long_before_the_next_beat() -> None:
    post, _ = post_of(Role.PREFILL)
    registry = MemoryRegistry()

    async def until_next_beat(_: asyncio.Event, interval_s: float) -> None:
        await post.await_change(interval_s)

    def roles(members: tuple[Member, ...]) -> list[Role]:
        return [member.role for member in members]

    async with asyncio.TaskGroup() as group, watching(registry) as watch:
        beating = group.create_task(
            keep_announced(
                registry,
                lambda: post.member,
                stop=asyncio.Event(),
                ttl_s=60.0,
                interval_s=30.0,  # longer than `news` waits
                wait=until_next_beat,
            )
        )
        for role in (Role.PREFILL, Role.MIXED, Role.DECODE):
            post.change(role)
            while roles(await news(watch)) != [role]:
                pass
        beating.cancel()
