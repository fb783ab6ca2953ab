"""From a deployment to what is wanted, and to the order for one member."""

import secrets
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.ids import InstanceId, RouterId
from core.member import Role
from deploy.controller.decide import POOLS, Start, Wanted, WantedPool
from deploy.controller.deployment import Deployment, instance_make, router_make
from deploy.controller.fit import bundle_of
from deploy.controller.hands import Order
from deploy.controller.record import Doors
from deploy.instance import InstanceSpec
from router.spec import RouterSpec

NAME_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"
"""Without those that are mistaken for each other."""
NAME_LENGTH = 5
HERE = ""
"""As a host: the address of whichever one it is put on."""


def wanted_of(deployment: Deployment) -> Wanted:
    """What the cluster is to have."""
    plan = deployment.plan
    pools = {
        role: WantedPool(num=plan.pools[role].replicas, make=instance_make(deployment, pool))
        for role, pool in plan.pools.items()
    }
    return Wanted(
        pools=pools,
        routers=WantedPool(num=plan.router.replicas, make=router_make(deployment)),
        max_surge=plan.max_surge,
    )


def nothing_wanted(wanted: Wanted, *, routers_left: bool) -> Wanted:
    """The end of a cluster: routers first, so that nothing new reaches instances that drain."""
    num_kept = {role: wanted.pools[role].num if routers_left else 0 for role in POOLS}
    return Wanted(
        pools={r: WantedPool(num=num_kept[r], make=wanted.pools[r].make) for r in POOLS},
        routers=WantedPool(num=0, make=wanted.routers.make),
        max_surge=wanted.max_surge,
    )


def new_name(taken: Container[str], pick: Callable[[str], str] = secrets.choice) -> str:
    """Of an instance; never used before, as far as anybody remembers."""
    while True:
        name = "instance-" + "".join(pick(NAME_LETTERS) for _ in range(NAME_LENGTH))
        if name not in taken:
            return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What all members of one cluster are told alike."""

    name: str
    registry_url: str
    host: str = HERE
    """That they listen on."""


def instance_order(
    cluster: Cluster, deployment: Deployment, start: Start, name: str, host: str
) -> Order:
    """An instance of its role's pool."""
    plan = deployment.plan
    pool = plan.pools[start.role]
    spec = InstanceSpec(
        instance_id=InstanceId(name),
        role=start.role,
        model_dir=Path(deployment.model),
        model_name=plan.model_name,
        config=deployment.config,
        layout=pool.layout,
        registry_url=cluster.registry_url,
        cluster=cluster.name,
        host=cluster.host,
        drain_s=plan.drain_s,
    )
    return Order(
        name=name,
        kind="instance",
        role=start.role,
        make=start.make,
        spec_json=spec.to_json(),
        bundle=bundle_of(plan, pool),
        host=host,
        log_level=deployment.log_level,
        log_format=deployment.log_format,
    )


def router_order(
    cluster: Cluster, deployment: Deployment, start: Start, doors: Mapping[str, Doors]
) -> Order:
    """A router, at the door where the last one of its name was."""
    plan = deployment.plan
    index = int(start.name.rpartition("-")[2])
    last = doors.get(start.name)
    spec = RouterSpec(
        router_id=RouterId(start.name),
        model_dir=Path(deployment.model),
        config=deployment.config.router,
        speed=deployment.speed,
        registry_url=cluster.registry_url,
        cluster=cluster.name,
        host=cluster.host,
        port=_port(plan.router.port, index, last.port if last else 0),
        http_port=_port(plan.router.http_port, index, last.http_port if last else 0),
        max_decoding=deployment.config.worker.max_running,
        drain_s=plan.drain_s,
    )
    return Order(
        name=start.name,
        kind="router",
        role=Role.ROUTER,
        make=start.make,
        spec_json=spec.to_json(),
        host=last.host if last else "",
        log_level=deployment.log_level,
        log_format=deployment.log_format,
    )


def _port(planned: int, index: int, last: int) -> int:
    return planned + index if planned else last
