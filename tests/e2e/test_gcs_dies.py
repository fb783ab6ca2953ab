"""Ray's own store dies and is started again: what runs goes on, what is asked is answered."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.clock import unix_time_s
from deploy.local_ray.door import read_holder
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

BACK_S = 30.0


@pytest.fixture(scope="module")
def cluster(tiny_dir: Path, own_state: Path) -> Iterator[OwnLoop[Controlled]]:
    """One of each."""
    with OwnLoop(controlled("gcs", deployment(tiny_dir, plan_toml(1, 1, num_routers=1)))) as loop:
        yield loop


def test_nobody_notices(cluster: OwnLoop[Controlled], tiny_oracle: Oracle) -> None:
    answers, told = cluster.run(_kill_under_load(cluster.value), 300.0)
    print("\nray's store was killed, then an instance:", *told, sep="\n  ")
    print("  " + compare_all(tiny_oracle, list({a.question: a for a in answers}.values())))
    cluster.run(cluster.value.check_books())


async def _kill_under_load(cluster: Controlled) -> tuple[list[Answer], list[str]]:
    before = await cluster.settled()
    began_at_s = unix_time_s()
    victim = next(m for m in before.members if m.name.startswith("instance"))

    async def kill_both() -> None:
        old = gcs_of(cluster)
        assert old is not None
        old.kill()
        async with asyncio.timeout(BACK_S):
            # Another process: there is no event to wait for.
            while gcs_of(cluster, but=old.pid) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        # Back, and with all it knew: who dies now is found, and another one started.
        kill_at(victim.address)
        await cluster.until(lambda s: s.settled and victim.name not in {m.name for m in s.members})

    answers = await under_load(routers_of(before), kill_both())
    return answers, events_since(await cluster.settled(), began_at_s)


def gcs_of(cluster: Controlled, but: int = 0) -> psutil.Process | None:
    """The store's process of this cluster's Ray."""
    holder = read_holder(cluster.site.ray_folder)
    assert holder is not None
    for process in psutil.Process(holder.pid).children(recursive=True):
        if process.name().startswith("gcs_server") and process.pid != but:
            return process
    return None
