"""Hosts as they were found, and the GPUs that a plan is made for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError, NoProfile
from core.inventory import NVLINK, PCIE, GpuLink, HostGpu, HostInventory, NetworkLink
from planner.ask.gpus import GpuAsk, fleet_of
from planner.ask.inventory import found_kinds
from planner.ask.latency import Times
from planner.ask.model import find_model
from planner.search.fleet import Fleet, Rules
from policy.hardware import catalogue

GPUS = catalogue()
H100 = GPUS["h100-80g-sxm"]
Written = Callable[..., tuple[Path, ...]]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Files of these hosts."""

    def write(*hosts: HostInventory) -> tuple[Path, ...]:
        paths = tuple(tmp_path / f"{number}.json" for number in range(len(hosts)))
        for path, host in zip(paths, hosts, strict=True):
            path.write_text(host.to_json(), encoding="utf-8")
        return paths

    return write


def host(
    name: str,
    *kinds: str,
    links: Callable[[int, int], float | None] = lambda *_: 450e9,
    network: float | None = 100e9,
) -> HostInventory:
    """With one GPU of each of these entries of the catalogue."""
    gpus = tuple(
        HostGpu(
            index=index,
            name=GPUS[key].nvml_name,
            uuid=f"{name}-{index}",
            memory_bytes=GPUS[key].memory_bytes,
            power_limit_w=GPUS[key].tdp_w,
            pcie="PCIe 5 x16",
            nvlink="NVLink 4",
        )
        for index, key in enumerate(kinds)
    )
    return HostInventory(
        host=name,
        num_cores=8,
        gpus=gpus,
        gpu_links=tuple(
            GpuLink(
                first=one,
                second=other,
                kind=NVLINK if (speed := links(one, other)) == 450e9 else PCIE,
                bytes_per_s=speed,
            )
            for other in range(len(gpus))
            for one in range(other)
        ),
        network=(NetworkLink(name="a", is_up=True, is_physical=True, bytes_per_s=network),),
    )


H = ("h100-80g-sxm",)
HOSTS = [
    # id            hosts                                        name, per host, hosts
    ("one", [host("a", *H * 8)], [("h100-80g-sxm", 8, 1)]),
    ("three alike", [host(name, *H * 8) for name in "abc"], [("h100-80g-sxm", 8, 3)]),
    (
        "two kinds",
        [host("a", *H * 8), host("b", "l4", "l4")],
        [("h100-80g-sxm", 8, 1), ("l4", 2, 1)],
    ),
    (
        "two sizes",
        [host("a", *H * 8), host("b", *H * 4), host("c", *H * 8)],
        [("h100-80g-sxm 8 per host", 8, 2), ("h100-80g-sxm 4 per host", 4, 1)],
    ),
    ("two kinds in one", [host("a", *H * 2, "l4")], [("h100-80g-sxm", 2, 1), ("l4", 1, 1)]),
]


@pytest.mark.parametrize(("hosts", "want"), [c[1:] for c in HOSTS], ids=[c[0] for c in HOSTS])
def test_hosts(
    hosts: list[HostInventory], want: list[tuple[str, int, int]], written: Written
) -> None:
    found = fleet(written(*hosts)).hardware
    assert [(each.name, each.gpus_per_host, each.num_hosts) for each in found] == want


def fleet(paths: tuple[Path, ...], **asked: object) -> Fleet:
    ask = GpuAsk(inventories=paths, **asked)  # type: ignore[arg-type]
    return fleet_of(ask, Times(), find_model("llama-3.1-8b"), Rules())


def test_links_are_those_that_were_found(written: Written) -> None:
    slow = host("b", *H * 4, links=lambda one, other: 64e9 if other == 3 else 450e9, network=25e9)
    found = fleet(written(host("a", *H * 4), slow)).network
    assert (found.local_bytes_per_s, found.host_bytes_per_s) == (64e9, 25e9)


def test_what_nobody_knows_is_the_catalogues(written: Written) -> None:
    (kind,) = found_kinds(written(host("a", *H * 8, links=lambda *_: None, network=None)), GPUS)
    assert replace(kind.gpu, memory_source=H100.memory_source) == H100


def test_a_single_gpu_has_nobody_to_be_linked_with(written: Written) -> None:
    (kind,) = found_kinds(written(host("a", *H)), GPUS)
    assert (kind.gpu.link, kind.gpu.link_bytes_per_s) == (H100.link, H100.link_bytes_per_s)
    assert kind.gpu.network_bytes_per_s == 100e9


def test_memory_and_power_are_those_that_were_found(written: Written) -> None:
    whole = host("a", *H * 2)
    less = tuple(
        replace(gpu, memory_bytes=85_000_000_000, power_limit_w=450.0) for gpu in whole.gpus
    )
    (kind,) = found_kinds(written(replace(whole, gpus=less)), GPUS)
    assert (kind.gpu.memory_bytes, kind.gpu.tdp_w) == (85_000_000_000, 450.0)
    assert "inventory of a" in kind.gpu.memory_source
    assert not list(kind.gpu.problems())


def test_the_slowest_link_names_itself(written: Written) -> None:
    (kind,) = found_kinds(written(host("a", *H * 2, links=lambda *_: 64e9)), GPUS)
    assert (kind.gpu.link, kind.gpu.link_bytes_per_s) == ("PCIe 5 x16", 64e9)


def test_fewer_may_be_asked_for(written: Written) -> None:
    (hardware,) = fleet(written(host("a", *H * 8), host("b", *H * 8)), num_gpus=8).hardware
    assert hardware.num_gpus == 8


def test_a_given_network_goes_before_a_found_one(written: Written) -> None:
    assert fleet(written(host("a", *H)), network_gbps=8).network.host_bytes_per_s == 1e9


def without_gpus() -> HostInventory:
    return HostInventory(host="laptop", num_cores=8, why_no_gpus="no NVIDIA driver")


def cut() -> HostInventory:
    whole = host("a", *H)
    return replace(whole, gpus=tuple(replace(gpu, has_mig=True) for gpu in whole.gpus))


REFUSED = [
    ("no GPUs", [without_gpus()], {}, "laptop has no GPUs: no NVIDIA driver"),
    ("partitions", [cut()], {}, "GPU 0 of a is cut into partitions"),
    ("twice", [host("a", *H * 2), host("a", *H * 2)], {}, "a-0 is in two of them, a and a"),
    ("named too", [host("a", *H)], {"kinds": ("l4",)}, "leave out --gpu"),
    ("counted too", [host("a", *H)], {"gpus_per_host": 4}, "leave out --gpu"),
]


@pytest.mark.parametrize(
    ("hosts", "asked", "says"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_refused(
    hosts: list[HostInventory], asked: dict[str, object], says: str, written: Written
) -> None:
    with pytest.raises(ConfigError, match=says):
        fleet(written(*hosts), **asked)


def test_all_problems_are_told_at_once(written: Written, tmp_path: Path) -> None:
    paths = (tmp_path / "nowhere.json", *written(without_gpus(), cut()))
    with pytest.raises(ConfigError) as caught:
        found_kinds(paths, GPUS)
    assert len(caught.value.problems) == 3


def test_a_gpu_that_nobody_described_says_what_is_known_of_it(written: Written) -> None:
    known = host("a", *H)
    other = replace(known.gpus[0], name="NVIDIA H20", memory_bytes=102_625_181_696)
    with pytest.raises(NoProfile) as caught:
        found_kinds(written(replace(known, gpus=(other,))), GPUS)
    assert caught.value.wanted == "the GPU 'NVIDIA H20' with 102.6 GB of a"
    assert "nvml_name" in caught.value.remedy


def test_a_file_of_the_user_describes_it(written: Written, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[gpus.h200]\nnvml_name = "NVIDIA H20"\nmemory_bytes = 102_625_181_696\n')
    known = host("a", *H)
    other = replace(known.gpus[0], name="NVIDIA H20", memory_bytes=102_625_181_696)
    found = fleet(written(replace(known, gpus=(other,))), files=(mine,))
    assert [each.name for each in found.hardware] == ["h200"]
