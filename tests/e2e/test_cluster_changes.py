"""Whatever the controller does or suffers, no request fails and every token is right."""

from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core.clock import unix_time_s
from deploy.tiny_model import write_tiny_llama
from rpc.pb import controller_pb2, types_pb2
from tests.e2e.asking import Answer
from tests.e2e.controlled import (
    Controlled,
    controlled,
    deployment,
    events_since,
    kill_at,
    plan_toml,
    routers_of,
    under_load,
)
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import OwnLoop

pytestmark = pytest.mark.ray

State = controller_pb2.ClusterState
Act = Callable[[Controlled, State], Coroutine[Any, Any, None]]

PREFILL, DECODE = types_pb2.ROLE_PREFILL, types_pb2.ROLE_DECODE


@pytest.fixture(scope="module")
def cluster(tiny_dir: Path, own_state: Path) -> Iterator[tuple[OwnLoop[Controlled], Controlled]]:
    """Two prefill, two decode, two routers, the tiny model."""
    with OwnLoop(controlled("changes", deployment(tiny_dir, plan_toml(2, 2)))) as loop:
        yield loop, loop.value


def num_of(state: State, role: int) -> int:
    return sum(m.role == role and m.state == "serving" for m in state.members)


def names_of(state: State, in_state: str = "") -> set[str]:
    return {m.name for m in state.members if not in_state or m.state == in_state}


async def kill_an_instance(cluster: Controlled, before: State) -> None:
    victim = next(m for m in before.members if m.role == DECODE)
    kill_at(victim.address)
    await cluster.until(lambda s: victim.name not in names_of(s))
    await cluster.settled()


async def kill_the_controller(cluster: Controlled, before: State) -> None:
    kill_at(await cluster.controller_address())
    await cluster.until_another_leads(before.term)
    after = await cluster.settled()
    # It found everybody, and started nobody.
    assert names_of(after) == names_of(before)


async def kill_a_router(cluster: Controlled, before: State) -> None:
    victim = next(m for m in before.members if m.role == types_pb2.ROLE_ROUTER)
    kill_at(victim.address)
    await cluster.until(lambda s: victim.name not in names_of(s, "serving"))
    after = await cluster.settled()
    # At the same door: clients that know it find it again.
    assert routers_of(after) == routers_of(before)


async def change_a_role(cluster: Controlled, before: State) -> None:
    await cluster.put(cluster.with_plan(plan_toml(1, 3)))
    after = await cluster.until(lambda s: s.settled and num_of(s, DECODE) == 3)
    # Nothing was loaded for it.
    assert names_of(after) == names_of(before)
    await cluster.put(cluster.with_plan(plan_toml(2, 2)))
    await cluster.until(lambda s: s.settled and num_of(s, DECODE) == 2)


def has_decode(state: State, num: int) -> bool:
    return state.settled and num_of(state, DECODE) == num


async def scale_decode(cluster: Controlled, before: State) -> None:
    for num in (3, 1, 2):
        await cluster.put(cluster.with_plan(plan_toml(2, num)))
        await cluster.until(partial(has_decode, num=num))


async def apply_a_new_plan(cluster: Controlled, before: State) -> None:
    """Another layout of one pool, another size of the other."""
    more = "max_surge = 2"
    text = plan_toml(1, 2, more=more).replace("[decode]", "[decode]\nlayout = { tp = 2 }")
    await cluster.put(cluster.with_plan(text))
    await cluster.until(lambda s: s.settled and num_of(s, PREFILL) == 1)
    await cluster.put(cluster.with_plan(plan_toml(2, 2)))
    await cluster.until(lambda s: s.settled and num_of(s, PREFILL) == 2)


async def drain_an_instance(cluster: Controlled, before: State) -> None:
    victim = next(m for m in before.members if m.role == PREFILL)
    await cluster.call(
        "DrainMember", controller_pb2.DrainMemberRequest(name=victim.name, timeout_s=20.0)
    )
    await cluster.until(lambda s: victim.name not in names_of(s))
    await cluster.settled()


async def drain_without_patience(cluster: Controlled, before: State) -> None:
    """At the deadline, which is now, what it writes goes on elsewhere."""
    victim = next(m for m in before.members if m.role == DECODE)
    await cluster.call("DrainMember", controller_pb2.DrainMemberRequest(name=victim.name))
    await cluster.until(lambda s: victim.name not in names_of(s))
    await cluster.settled()


async def kill_the_controller_at_work(cluster: Controlled, before: State) -> None:
    """It had begun to start an instance; the next one takes over there, or begins anew."""
    await cluster.put(cluster.with_plan(plan_toml(2, 3)))
    await cluster.until(lambda s: bool(names_of(s, "starting")))
    kill_at(await cluster.controller_address())
    await cluster.until_another_leads(before.term)
    after = await cluster.settled()
    assert names_of(before) < names_of(after)
    await cluster.put(cluster.with_plan(plan_toml(2, 2)))
    await cluster.until(partial(has_decode, num=2))


async def kill_and_empty_the_store(cluster: Controlled, before: State) -> None:
    """Started again it has all; emptied, it is told again."""
    kill_at(cluster.ground.registry_url.rpartition("@")[2].partition("/")[0])
    text = await cluster.deployment()
    await cluster.empty_registry()
    assert await cluster.deployment() == text
    await cluster.settled()


CASES: list[Act] = [
    kill_an_instance,
    kill_the_controller,
    kill_the_controller_at_work,
    kill_and_empty_the_store,
    drain_without_patience,
    kill_a_router,
    change_a_role,
    scale_decode,
    drain_an_instance,
    apply_a_new_plan,
]


@pytest.mark.parametrize("act", CASES, ids=lambda act: act.__name__)
def test_nobody_notices(
    cluster: tuple[OwnLoop[Controlled], Controlled], tiny_oracle: Oracle, act: Act
) -> None:
    loop, controlled = cluster
    answers, told = loop.run(_under_load(controlled, act), 400.0)
    print(f"\n{act.__name__}:", *told, sep="\n  ")
    print("  " + compare_all(tiny_oracle, distinct(answers)))
    loop.run(controlled.check_books())


def test_rolling_update_to_other_weights(
    cluster: tuple[OwnLoop[Controlled], Controlled],
    tiny_oracle: Oracle,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each answer is wholly of the old weights or wholly of the new ones."""
    loop, controlled = cluster
    other_dir = write_tiny_llama(tmp_path_factory.mktemp("other") / "tiny-2", layers=3, seed=1)

    async def update(controlled: Controlled, _: State) -> None:
        await controlled.put(deployment(other_dir, plan_toml(2, 2)))
        await controlled.settled()

    answers, told = loop.run(_under_load(controlled, update), 500.0)
    print("\nrolling update:", *told, sep="\n  ")
    other_oracle = Oracle(other_dir)
    old = [a for a in distinct(answers) if not _is_of(other_oracle, a)]
    new = [a for a in distinct(answers) if _is_of(other_oracle, a)]
    assert old
    assert new
    compare_all(tiny_oracle, old)
    loop.run(controlled.check_books())


def _is_of(oracle: Oracle, answer: Answer) -> bool:
    return oracle.compare(answer.question.prompt, answer.token_ids).problem is None


def distinct(answers: list[Answer]) -> list[Answer]:
    """Most were asked several times; two answers to one question would both be looked at."""
    return list({(a.question, a.token_ids): a for a in answers}.values())


async def _under_load(controlled: Controlled, act: Act) -> tuple[list[Answer], list[str]]:
    before = await controlled.settled()
    began_at_s = unix_time_s()
    answers = await under_load(routers_of(before), act(controlled, before))
    assert len(answers) >= 1
    return answers, events_since(await controlled.settled(), began_at_s)
