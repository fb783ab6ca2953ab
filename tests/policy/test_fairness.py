"""Turns: who goes next, and that no tenant with work is starved by another's flood."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.fairness import MAX_ABSENT, Claim, FairQueue, ServedTokens


def queue(*claims: Claim, served: ServedTokens | None = None) -> FairQueue[int]:
    """Item i has the i-th claim."""
    made: FairQueue[int] = FairQueue(ageing_s=10.0, served=served or ServedTokens())
    for item, claim in enumerate(claims):
        made.add(item, claim)
    return made


def claim(tenant: str = "a", priority: int = 0, arrived_at_s: float = 0.0) -> Claim:
    return Claim(tenant=tenant, priority=priority, arrived_at_s=arrived_at_s)


TURNS = [
    # id, claims, now_s, want
    ("arrival", [claim(arrived_at_s=2), claim("b", arrived_at_s=1)], 3, [1, 0]),
    ("priority first", [claim(), claim("b", 1, 5)], 6, [1, 0]),
    ("nine seconds are not a step", [claim(), claim("b", 1, 5)], 9.9, [1, 0]),
    ("ten are, then arrival decides", [claim(), claim("b", 1, 5)], 10, [0, 1]),
    ("no higher than the highest", [claim(), claim("b", 1, 50)], 60, [0, 1]),
    ("two steps need twenty", [claim(), claim("b", 2, 5)], 19, [1, 0]),
    ("equals do not outwait each other", [claim(), claim("b", 0, 99)], 100, [0, 1]),
]


@pytest.mark.parametrize(("claims", "now_s", "want"), [t[1:] for t in TURNS], ids=lambda t: None)
def test_turns(claims: list[Claim], now_s: float, want: list[int]) -> None:
    assert list(queue(*claims).in_turn(now_s)) == want


def test_the_least_served_goes_first_however_long_the_other_waits() -> None:
    served = ServedTokens()
    for tenant in "ab":
        served.join(tenant)
    served.charge("a", 5)
    waiting = queue(claim("a", arrived_at_s=0), claim("b", arrived_at_s=1000), served=served)
    assert list(waiting.in_turn(2000)) == [1, 0]


def test_what_is_charged_between_turns_counts_at_once() -> None:
    served = ServedTokens()
    for tenant in "ab":
        served.join(tenant)
    waiting = queue(claim("a"), claim("a"), claim("b", arrived_at_s=1), served=served)
    order = []
    for item in waiting.in_turn(2):
        order.append(item)
        served.charge("b" if item == 2 else "a", 10)
    assert order == [0, 2, 1]


def test_removed_items_have_no_turn() -> None:
    waiting = queue(claim(), claim(), claim())
    assert waiting.remove(1)
    assert not waiting.remove(1)
    assert (list(waiting.in_turn(0)), list(waiting), len(waiting)) == ([0, 2], [0, 2], 2)
    assert 0 in waiting
    assert 1 not in waiting


def test_nobody_saves_up_while_away() -> None:
    served = ServedTokens()
    served.join("busy")
    served.charge("busy", 1000)
    served.join("new")
    assert served.served("new") == 1000
    served.leave("busy")
    served.leave("new")
    served.join("third")
    assert served.served("third") == 1000


def test_an_absent_tenant_keeps_its_debt() -> None:
    served = ServedTokens()
    served.join("a")
    served.join("b")
    served.charge("a", 100)
    served.leave("a")
    served.join("a")
    assert served.served("a") == 100


def test_debts_of_many_absent_tenants_are_forgiven_at_once() -> None:
    served = ServedTokens()
    served.join("light")
    for i in range(2 * MAX_ABSENT):
        served.join(f"tenant-{i}")
        served.charge(f"tenant-{i}", 1 + i)
        served.leave(f"tenant-{i}")
    assert len(served._served) <= MAX_ABSENT + 1


def test_tenants_that_are_gone_take_no_memory() -> None:
    served = ServedTokens()
    for i in range(1000):
        served.join(f"tenant-{i}")
        served.charge(f"tenant-{i}", 1)
        served.leave(f"tenant-{i}")
    assert len(served._served) <= 1


@given(
    weights=st.lists(st.integers(1, 10), min_size=2, max_size=4),
    costs=st.lists(st.integers(1, 50), min_size=200, max_size=200),
)
def test_backlogged_tenants_are_served_alike(weights: list[int], costs: list[int]) -> None:
    """The law of virtual token counters: counters differ by at most one item's cost."""
    served = ServedTokens()
    waiting: FairQueue[int] = FairQueue(ageing_s=1.0, served=served)
    tenant_of: dict[int, str] = {}

    def arrive(tenant: str) -> None:
        item = len(tenant_of)
        tenant_of[item] = tenant
        served.join(tenant)
        waiting.add(item, claim(tenant, arrived_at_s=float(item)))

    names = [f"t{i}" for i in range(len(weights))]
    for name, weight in zip(names, weights, strict=True):
        for _ in range(weight):
            arrive(name)
    for now_s, cost in enumerate(costs):
        item = next(waiting.in_turn(float(now_s)))
        waiting.remove(item)
        served.charge(tenant_of[item], cost)
        arrive(tenant_of[item])
        served.leave(tenant_of[item])
        counters = [served.served(name) for name in names]
        assert max(counters) - min(counters) <= 50
