"""What each member is told."""

from dataclasses import replace

import pytest

from core.limits import MAX_TIMEOUT_S
from core.member import INSTANCE_ID, Role
from deploy.controller.decide import POOLS, Start, Wanted
from deploy.controller.deployment import Deployment, instance_make
from deploy.controller.hands import Order
from deploy.controller.orders import (
    Cluster,
    instance_order,
    new_name,
    nothing_wanted,
    router_order,
    wanted_of,
)
from deploy.controller.record import Doors
from deploy.instance import InstanceSpec
from router.spec import RouterSpec

CLUSTER = Cluster(name="mine", registry_url="redis://store:1/0")
PLAN = """
drain_s = 7.0
max_surge = 2
[prefill]
replicas = 2
num_gpus = 1.0
layout = { tp = 2 }
[decode]
replicas = 3
[router]
replicas = 2
"""
FIRST = Deployment(plan_toml=PLAN, model="models/tiny", log_level="INFO")
DOORS = {"router-1": Doors(host="10.0.0.7", port=4001, http_port=4002)}


def test_wanted_of() -> None:
    wanted = wanted_of(FIRST)
    assert [wanted.pools[role].num for role in POOLS] == [2, 3, 0]
    assert (wanted.routers.num, wanted.max_surge, wanted.num_instances) == (2, 2, 5)


@pytest.mark.parametrize(("routers_left", "num_instances"), [(True, 5), (False, 0)])
def test_routers_leave_before_instances(routers_left: bool, num_instances: int) -> None:
    nothing: Wanted = nothing_wanted(wanted_of(FIRST), routers_left=routers_left)
    assert (nothing.routers.num, nothing.num_instances) == (0, num_instances)


def test_a_name_is_never_given_twice() -> None:
    letters = iter("aaaaa" + "bbbbb")
    assert new_name({"instance-aaaaa"}, lambda _: next(letters)) == "instance-bbbbb"
    assert INSTANCE_ID.fullmatch(new_name(set()))


def order_of(deployment: Deployment, role: Role) -> Order:
    if role is Role.ROUTER:
        return router_order(CLUSTER, deployment, Start(role=role, make="m", name="router-1"), DOORS)
    start = Start(role=role, make=instance_make(deployment, deployment.plan.pools[role]))
    return instance_order(CLUSTER, deployment, start, "instance-a", "10.0.0.7")


def test_an_instance_is_told_all_of_its_pool() -> None:
    order = order_of(FIRST, Role.PREFILL)
    assert (order.kind, order.role, order.host) == ("instance", Role.PREFILL, "10.0.0.7")
    assert order.bundle == {"CPU": 2.0, "GPU": 2.0}
    spec = InstanceSpec.from_json(order.spec_json)
    assert (spec.instance_id, spec.layout.tp, spec.drain_s) == ("instance-a", 2, 7.0)
    assert (spec.registry_url, spec.cluster) == ("redis://store:1/0", "mine")


PORTS = [
    # plan's, by name of the router, host and ports told
    ("any: the last ones", "", "router-1", ("10.0.0.7", 4001, 4002)),
    ("any, and it never was: any", "", "router-0", ("", 0, 0)),
    ("planned: counted from the first", "port = 7000\nhttp_port = 8000", "router-1",
     ("10.0.0.7", 7001, 8001)),
    ("planned, and it never was", "port = 7000\nhttp_port = 8000", "router-0", ("", 7000, 8000)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ports", "name", "want"), [c[1:] for c in PORTS], ids=[c[0] for c in PORTS]
)
def test_a_router_is_told_its_door(ports: str, name: str, want: tuple[str, int, int]) -> None:
    deployment = replace(FIRST, plan_toml=f"{PLAN}{ports}")
    start = Start(role=Role.ROUTER, make="m", name=name)
    order = router_order(CLUSTER, deployment, start, DOORS)
    spec = RouterSpec.from_json(order.spec_json)
    assert (order.host, spec.port, spec.http_port) == want
    assert (spec.router_id, dict(order.bundle)) == (name, {})


PLANS = [
    ("no patience", PLAN.replace("7.0", "0.0")),
    ("all patience", PLAN.replace("7.0", f"{MAX_TIMEOUT_S}")),
    ("no GPU, no CPU", PLAN.replace("num_gpus = 1.0", "num_cpus = 0.0")),
    ("the highest ports", PLAN + f"port = {65_535 - 2}\nhttp_port = {65_535 - 2}"),
    ("a name of the model", 'model_name = "é ☃"' + PLAN),
]


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("text", [c[1] for c in PLANS], ids=[c[0] for c in PLANS])
def test_of_every_plan_that_is_accepted_orders_can_be_made(text: str, role: Role) -> None:
    deployment = replace(FIRST, plan_toml=text)
    assert list(deployment.problems()) == []
    order = order_of(deployment, role)
    kind = RouterSpec if role is Role.ROUTER else InstanceSpec
    assert kind.from_json(order.spec_json).drain_s == deployment.plan.drain_s
