"""plan.toml: what it means and what it refuses."""

import pytest

from core.errors import ConfigError
from core.parallel import ParallelLayout
from core.plan import parse_plan

REFUSED = [
    ("unknown key", "[prefil]\nreplicas = 1", "prefil"),
    ("other schema", "schema = 2", "schema must be 1"),
    ("no decode", "[decode]\nreplicas = 0", "needs prefill and decode"),
    ("negative", "[prefill]\nreplicas = -1", "at least 0"),
    ("no router", "[router]\nreplicas = 0", "router.replicas"),
    ("no ranks", "[decode]\nlayout = { tp = 0 }", "tp must be 1 to 64, got 0"),
]


@pytest.mark.parametrize(("text", "named"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_plan(text)


def test_empty_plan_is_one_of_each() -> None:
    plan = parse_plan("")
    assert (plan.prefill.replicas, plan.decode.replicas, plan.mixed.replicas) == (1, 1, 0)


def test_mixed_alone_is_enough() -> None:
    plan = parse_plan("[prefill]\nreplicas=0\n[decode]\nreplicas=0\n[mixed]\nreplicas=1")
    assert plan.mixed.replicas == 1


def test_workers_of_a_layout() -> None:
    assert ParallelLayout(tp=2, pp=3).num_workers == 6
