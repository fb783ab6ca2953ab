"""Which layouts and pairs are looked at."""

from core.member import Role
from planner.search.candidates import Limits, layouts, mixed_pools, pools, times_as_many, units
from planner.sim.spec import Scheduling
from tests.planner.search.fakes import Source, fleet
from tests.planner.search.pools import one_pair

WIDE = Source(tps=(1, 2, 4, 8), pps=(1, 2, 3))


def names(
    source: Source, limits: Limits, role: Role = Role.PREFILL, num_hosts: int = 8
) -> list[str]:
    hardware = fleet(source, num_hosts=num_hosts).hardware[0]
    return [str(layout) for layout in layouts(hardware, limits, role)]


def test_layouts_fit_into_hosts_and_into_what_there_is() -> None:
    assert names(WIDE, Limits(), num_hosts=1) == ["1x1", "2x1", "1x2", "1x3", "4x1", "2x2"]
    assert names(WIDE, Limits(max_gpus=2)) == ["1x1", "2x1", "1x2"]
    assert "8x1" not in names(WIDE, Limits())
    assert "4x3" in names(WIDE, Limits())
    assert "4x3" not in names(WIDE, Limits(max_hosts=2))


def test_layouts_hold_a_request() -> None:
    """Stages write answers in as many lanes, and a request is in one of them."""
    limits = Limits(least_tokens=100_000, max_gpus=4)
    assert names(WIDE, limits) == ["2x1", "1x2", "1x3", "4x1", "2x2"]
    assert names(WIDE, limits, Role.DECODE) == ["2x1", "4x1", "2x2"]


def test_the_nine_units_of_four_gpus() -> None:
    """As DistServe's quick start has them for OPT-13B."""
    made = units(fleet(Source(tps=(1, 2, 4), pps=(1, 2, 4)), num_hosts=1), Limits())
    found = {tuple(str(each.layout) for each in unit.pools) for unit in made}
    small = ("1x1", "2x1", "1x2")
    assert found == {(prefill, decode) for prefill in small for decode in small}
    assert {unit.num_segments for unit in made} == {1}


def test_segments_pair_up_within_hosts() -> None:
    """OPT-175B's published P(3,3) and D(4,3) on hosts of eight: three segments of seven GPUs."""
    source = Source(tps=(3, 4), pps=(3,))
    hardware = fleet(source).hardware[0]
    eight = fleet(source)
    eight = type(eight)(
        hardware=(type(hardware)(name="gpu", source=source, gpus_per_host=8, num_hosts=4),)
    )
    cuts = {
        tuple(str(each.layout) for each in unit.pools): unit.num_segments
        for unit in units(eight, Limits())
    }
    assert cuts["3x3", "4x3"] == 3
    assert cuts["4x3", "4x3"] == 3


def test_pools_are_single_instances_of_every_layout() -> None:
    made = pools(fleet(), Role.DECODE, Limits())
    assert [str(each) for each in made] == [f"1 × decode {tp}x1 gpu" for tp in (1, 2, 4)]
    mixed = mixed_pools(fleet(), Limits(max_gpus=1))
    assert [each.scheduling for each in mixed] == [Scheduling.EXCLUSIVE, Scheduling.CHUNKED]


def test_times_as_many() -> None:
    assert times_as_many(one_pair(), (3, 5)) == one_pair(3, 5)
