"""Where instances are put, and what is said when they cannot be."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core.member import Role
from core.parallel import ParallelLayout
from core.plan import InstanceType, Plan, PoolPlan
from deploy.controller.fit import (
    DoesNotFit,
    Host,
    Want,
    bundle_of,
    check_fits,
    choose_host,
    wants_of,
    with_back,
)

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


def host(address: str, cpus: float, gpus: float = 0.0, **others: float) -> Host:
    """With so much left."""
    free = {"CPU": cpus, "GPU": gpus, **others}
    return Host(address=address, free={name: amount for name, amount in free.items() if amount})


def pool(replicas: int, gpus: float = 1.0, *, tp: int = 1, cpus: float = 1.0) -> PoolPlan:
    """Of one layout."""
    layout = ParallelLayout(tp=tp)
    return PoolPlan(replicas=replicas, layout=layout, num_gpus=gpus, num_cpus=cpus)


def plan(prefill: PoolPlan, decode: PoolPlan, mixed: int = 0, *, affinity: str = "any") -> Plan:
    """Of so many mixed ones, too."""
    return Plan(prefill=prefill, decode=decode, mixed=pool(mixed), affinity=affinity)


TYPED = Plan(
    prefill=PoolPlan(layout=ParallelLayout(tp=2, pp=2), instance_type="big"),
    instance_types={"big": InstanceType(num_cpus=2, num_gpus=1, resources={"H200": 0.5})},
)
BUNDLES = [
    ("per rank", Plan(prefill=pool(1, 1, tp=4)), {"CPU": 4.0, "GPU": 4.0}),
    ("no GPU: none is asked for", Plan(prefill=pool(1, 0)), {"CPU": 1.0}),
    ("a part of a GPU", Plan(prefill=pool(1, 0.25, cpus=0, tp=2)), {"GPU": 0.5}),
    ("of a type: its resources once", TYPED, {"CPU": 8.0, "GPU": 4.0, "H200": 0.5}),
    ("nothing", Plan(prefill=pool(1, 0, cpus=0)), {}),
]


@pytest.mark.parametrize(("plan", "want"), [c[1:] for c in BUNDLES], ids=[c[0] for c in BUNDLES])
def test_bundle_of(plan: Plan, want: dict[str, float]) -> None:
    assert bundle_of(plan, plan.prefill) == want


def test_wants_come_in_turn() -> None:
    roles = [want.role for want in wants_of(plan(pool(1), pool(3), 2))]
    assert roles == [P, D, M, D, M, D]


REFUSALS = [
    # id, plan, hosts, what is said
    (
        "nobody is there",
        plan(pool(1), pool(1)),
        [],
        [
            "1 of 1 prefill instances do not fit, each needs 1 CPU and 1 GPU on one host",
            "no host has 1 CPU left, the most is 0",
            "no host has 1 GPU left, the most is 0",
            "1 of 1 decode instances do not fit, each needs 1 CPU and 1 GPU on one host",
            "no host has 1 CPU left, the most is 0",
            "no host has 1 GPU left, the most is 0",
            "left on 0 hosts: none",
        ],
    ),
    (
        "one of three is left over: the rest is counted as taken",
        plan(pool(2), pool(1)),
        [host("a", 8, 1), host("b", 8, 1)],
        [
            "1 of 2 prefill instances do not fit, each needs 1 CPU and 1 GPU on one host",
            "no host has 1 GPU left, the most is 0",
            "left on 2 hosts: a (7 CPU, 0 GPU), b (7 CPU, 0 GPU)",
        ],
    ),
    (
        "enough in all, on no host enough",
        plan(pool(1, tp=4), pool(1)),
        [host("a", 8, 2), host("b", 8, 3)],
        [
            "1 of 1 prefill instances do not fit, each needs 4 CPU and 4 GPU on one host",
            "no host has 4 GPU left, the most is 2",
            "left on 2 hosts: a (8 CPU, 2 GPU), b (7 CPU, 2 GPU)",
        ],
    ),
    (
        "each is somewhere, both nowhere together",
        plan(pool(1, cpus=4), pool(1, 0)),
        [host("a", 8), host("b", 1, 4)],
        [
            "1 of 1 prefill instances do not fit, each needs 4 CPU and 1 GPU on one host",
            "left on 2 hosts: a (7 CPU), b (1 CPU, 4 GPU)",
        ],
    ),
    (
        "a pair needs one host",
        plan(pool(1), pool(1), affinity="paired"),
        [host("a", 8, 1), host("b", 8, 1)],
        [
            "1 of 1 prefill instances do not fit, "
            "each needs 1 CPU and 1 GPU on one host beside its partner",
            "1 of 1 decode instances do not fit, "
            "each needs 1 CPU and 1 GPU on one host beside its partner",
            "left on 2 hosts: a (8 CPU, 1 GPU), b (8 CPU, 1 GPU)",
        ],
    ),
    (
        "another resource, by its name; Ray's own are not shown",
        replace(TYPED, decode=pool(1, 0)),
        [
            host("a", 99, 8, **{"node:a": 1.0, "memory": 1e9, "A100": 1.0}),
        ],
        [
            "1 of 1 prefill instances do not fit, each needs 8 CPU and 4 GPU and 0.5 H200"
            " on one host",
            "no host has 0.5 H200 left, the most is 0",
            "left on 1 hosts: a (98 CPU, 8 GPU, 1 A100)",
        ],
    ),
]


@pytest.mark.parametrize(
    ("plan", "hosts", "want"), [c[1:] for c in REFUSALS], ids=[c[0] for c in REFUSALS]
)
def test_everything_that_is_missing_is_named(
    plan: Plan, hosts: Sequence[Host], want: list[str]
) -> None:
    with pytest.raises(DoesNotFit) as caught:
        check_fits(plan, hosts)
    assert sorted(str(caught.value).split("; ")) == sorted(want)


def test_a_thousand_hosts_are_not_all_listed() -> None:
    with pytest.raises(DoesNotFit, match=r"left on 1000 hosts: h0 .*, h7 ") as caught:
        check_fits(plan(pool(1), pool(1)), [host(f"h{i}", 1) for i in range(1000)])
    assert "h8" not in str(caught.value)


def with_roles(host: Host, **roles: int) -> Host:
    """So many of ours are there."""
    return replace(host, roles={Role(role): num for role, num in roles.items()})


ANY, PAIRED = plan(pool(2), pool(2)), plan(pool(2), pool(2), affinity="paired")
A, B = host("a", 8, 4), host("b", 8, 4)
CHOICES: list[tuple[str, Plan, Role, list[Host], str | None]] = [
    ("nowhere", ANY, P, [host("a", 8, 0.5)], None),
    ("the only one with room", ANY, P, [host("a", 8), B], "b"),
    ("the emptier one", ANY, P, [host("a", 8, 2), B], "b"),
    ("away from its like", ANY, P, [with_roles(A, prefill=1), B], "b"),
    ("even where more room is", ANY, P, [with_roles(A, prefill=1), host("b", 1, 1)], "b"),
    ("away from others of ours", ANY, P, [with_roles(A, decode=1), B], "b"),
    ("its like counts more", ANY, P, [with_roles(A, prefill=1), with_roles(B, decode=3)], "b"),
    ("a pair: beside the one that waits", PAIRED, P, [with_roles(A, decode=1), B], "a"),
    ("where more wait", PAIRED, P, [with_roles(A, decode=1), with_roles(B, decode=2)], "b"),
    (
        "none waits: away from its like",
        PAIRED,
        P,
        [with_roles(A, prefill=1, decode=1), B],
        "b",
    ),
    ("no room for the partner", PAIRED, P, [host("a", 8, 1), host("b", 8, 2)], "b"),
    ("no room for the partner anywhere", PAIRED, P, [host("a", 8, 1)], None),
    ("mixed ones have no partner", PAIRED, M, [host("a", 8, 1)], "a"),
    ("nor have routers", PAIRED, Role.ROUTER, [with_roles(A, router=1), B], "b"),
    ("routers go where few are", ANY, Role.ROUTER, [with_roles(A, prefill=1), B], "b"),
]


@pytest.mark.parametrize(
    ("plan", "role", "hosts", "want"), [c[1:] for c in CHOICES], ids=[c[0] for c in CHOICES]
)
def test_choose_host(plan: Plan, role: Role, hosts: list[Host], want: str | None) -> None:
    bundle = {} if role is Role.ROUTER else bundle_of(plan, plan.pools[role])
    chosen = choose_host(plan, Want(role=role, bundle=bundle), hosts)
    assert (chosen.address if chosen else None) == want


def test_parts_add_up() -> None:
    # 0.6 - 0.2 - 0.2 is a little less than 0.2 in binary fractions.
    check_fits(plan(pool(2, 0.2, cpus=0), pool(1, 0.2, cpus=0)), [host("a", 0, 0.6)])


def test_what_is_replaced_makes_room() -> None:
    full = with_roles(host("a", 0.0), prefill=1, decode=1)
    empty = with_back(full, [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}])
    assert dict(empty.free) == {"CPU": 2.0, "GPU": 1.0}
    assert not empty.roles


# --- laws -------------------------------------------------------------------------------------

HOSTS = st.lists(st.tuples(st.integers(1, 32), st.integers(0, 8)), min_size=1, max_size=5).map(
    lambda sizes: [host(f"h{i}", cpus, gpus) for i, (cpus, gpus) in enumerate(sizes)]
)
POOLS = st.builds(
    lambda replicas, tp, gpus: pool(replicas, gpus, tp=tp),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
PLANS = st.builds(plan, POOLS, POOLS, st.integers(0, 2))
PAIRED_PLANS = st.builds(
    lambda prefill, decode: plan(
        prefill, replace(decode, replicas=prefill.replicas), affinity="paired"
    ),
    POOLS,
    POOLS,
)


def placed(plan: Plan, hosts: Sequence[Host]) -> list[Host] | None:
    """As the controller does, one by one; None: one found no place."""
    room = list(hosts)
    for want in wants_of(plan):
        chosen = choose_host(plan, want, room)
        if chosen is None:
            return None
        assert chosen.holds(want.bundle)
        room[room.index(chosen)] = chosen.with_member(want.role, want.bundle)
    return room


def fits(plan: Plan, hosts: Sequence[Host]) -> bool:
    """Whether it is accepted."""
    try:
        check_fits(plan, hosts)
    except DoesNotFit:
        return False
    return True


@given(st.one_of(PLANS, PAIRED_PLANS), HOSTS)
def test_nothing_is_promised_twice(plan: Plan, hosts: list[Host]) -> None:
    room = placed(plan, hosts)
    assume(room is not None)
    assert room is not None
    assert all(left >= -1e-6 for each in room for left in each.free.values())
    assert sum(sum(each.roles.values()) for each in room) == len(wants_of(plan))


@given(st.one_of(PLANS, PAIRED_PLANS), HOSTS)
def test_what_is_accepted_can_be_placed(plan: Plan, hosts: list[Host]) -> None:
    """In the order in which members are started, too."""
    assume(fits(plan, hosts))
    assert placed(plan, hosts) is not None


@given(PAIRED_PLANS, HOSTS)
def test_pairs_share_hosts(plan: Plan, hosts: list[Host]) -> None:
    room = placed(plan, hosts)
    assume(room is not None)
    assert room is not None
    assert all(each.roles.get(P, 0) == each.roles.get(D, 0) for each in room)


@given(st.integers(1, 8), st.integers(1, 4))
def test_a_pool_is_spread(num: int, num_hosts: int) -> None:
    """A host that dies takes no more than its share."""
    room = placed(plan(pool(num), pool(num)), [host(f"h{i}", 99, 16) for i in range(num_hosts)])
    assert room is not None
    for role in (P, D):
        counts = [each.roles.get(role, 0) for each in room]
        assert max(counts) - min(counts) <= 1
