"""Prefill and decode on different hosts of a user's own Ray; then one host loses its power."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.clock import unix_time_s
from deploy.bring_up import Site
from rpc.pb import controller_pb2, types_pb2
from tests.e2e.asking import Answer
from tests.e2e.controlled import (
    Controlled,
    controlled_at,
    deployment,
    events_since,
    plan_toml,
    routers_of,
    under_load,
)
from tests.e2e.hosts import Hosts, HostSpec, hosts
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import OwnLoop

pytestmark = pytest.mark.ray

READERS = "[instance_types.readers]\nresources = { prefill_host = 1 }\n\n"


@pytest.fixture(scope="module")
def three_hosts() -> Iterator[Hosts]:
    """A head that computes nothing, one for prefill with room to spare, and one more."""
    specs = [
        HostSpec(num_cpus=0),
        HostSpec(num_cpus=2, resources={"prefill_host": 1}),
        HostSpec(num_cpus=1),
    ]
    with hosts(specs) as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", running.token)
        yield running


@pytest.fixture(scope="module")
def cluster(three_hosts: Hosts, tiny_dir: Path, own_state: Path) -> Iterator[OwnLoop[Controlled]]:
    """One prefill instance, one decode instance, two routers."""
    text = plan_toml(1, 1).replace("[prefill]", f'{READERS}[prefill]\ninstance_type = "readers"')
    site = Site(name="hosts", ray_address=three_hosts.address, log_level="INFO")
    with OwnLoop(controlled_at(site, deployment(tiny_dir, text))) as loop:
        yield loop


def test_a_host_loses_its_power(
    cluster: OwnLoop[Controlled], three_hosts: Hosts, tiny_oracle: Oracle
) -> None:
    _, readers, writers = three_hosts.ips
    before = cluster.run(cluster.value.settled())
    assert host_of(before, types_pb2.ROLE_PREFILL) == readers
    assert host_of(before, types_pb2.ROLE_DECODE) == writers
    answers, told = cluster.run(_lose(cluster.value, three_hosts, writers), 400.0)
    print("\na host was lost:", *told, sep="\n  ")
    print("  " + compare_all(tiny_oracle, list({a.question: a for a in answers}.values())))
    cluster.run(cluster.value.check_books())


async def _lose(
    cluster: Controlled, three_hosts: Hosts, lost: str
) -> tuple[list[Answer], list[str]]:
    before = await cluster.settled()
    began_at_s = unix_time_s()
    # Routers have no place of their own: those on the host go, too, and clients go on elsewhere.
    routers = [address for address in routers_of(before) if not address.startswith(lost)]

    async def lose() -> None:
        await asyncio.to_thread(three_hosts.kill, three_hosts.ips.index(lost))
        await cluster.until(lambda s: s.settled and not any(m.host == lost for m in s.members))

    answers = await under_load(routers, lose())
    after = await cluster.settled()
    return answers, events_since(after, began_at_s)


def host_of(state: controller_pb2.ClusterState, role: int) -> str:
    """Of the only member of a role."""
    (host,) = [member.host for member in state.members if member.role == role]
    return host
