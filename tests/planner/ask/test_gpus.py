"""Which GPUs are meant, and how they become hosts."""

from pathlib import Path

import pytest

from core.errors import ConfigError, NoProfile
from planner.ask.gpus import GpuAsk, find_gpu, fleet_of
from planner.ask.latency import Times
from planner.ask.model import find_model
from planner.search.fleet import ANY_NUMBER, Fleet, Rules
from policy.hardware import catalogue

FOUND = [
    # text             key
    ("h100-80g-sxm", "h100-80g-sxm"),
    ("h100-sxm", "h100-80g-sxm"),
    ("H100-PCIe", "h100-80g-pcie"),
    ("a100-40g", "a100-40g-sxm"),
    ("l4", "l4"),
]


@pytest.mark.parametrize(("text", "key"), FOUND)
def test_a_part_of_the_name_is_enough(text: str, key: str) -> None:
    assert find_gpu(text, catalogue()) == key


@pytest.mark.parametrize("key", catalogue())
def test_every_key_means_itself(key: str) -> None:
    assert find_gpu(key, catalogue()) == key


def test_what_could_be_several_is_asked_back() -> None:
    with pytest.raises(ConfigError, match="say which of a100-40g-sxm, a100-80g-sxm"):
        find_gpu("a100", catalogue())


def test_what_is_nowhere_says_what_there_is() -> None:
    with pytest.raises(NoProfile) as caught:
        find_gpu("tpu-v5", catalogue())
    assert caught.value.available == tuple(catalogue())


def fleet(**asked: object) -> Fleet:
    ask = GpuAsk(**asked)  # type: ignore[arg-type]
    return fleet_of(ask, Times(), find_model("llama-3.1-8b"), Rules())


HOSTS = [
    # id                    asked                                        hosts       per host
    ("as the catalogue", {"kinds": ("h100-sxm",)}, ANY_NUMBER, 8),
    ("two full ones", {"kinds": ("h100-sxm",), "num_gpus": 16}, 2, 8),
    ("not a full one", {"kinds": ("h100-sxm",), "num_gpus": 3}, 1, 3),
    ("so many of a kind", {"kinds": ("h100-sxm=16",)}, 2, 8),
    ("smaller hosts", {"kinds": ("h100-sxm",), "num_gpus": 8, "gpus_per_host": 4}, 2, 4),
    ("owned", {"owned": ("h100-sxm=8",)}, 1, 8),
]


@pytest.mark.parametrize(
    ("asked", "num_hosts", "per_host"), [c[1:] for c in HOSTS], ids=[c[0] for c in HOSTS]
)
def test_hosts(asked: dict[str, object], num_hosts: int, per_host: int) -> None:
    (hardware,) = fleet(**asked).hardware
    assert (hardware.num_hosts, hardware.gpus_per_host) == (num_hosts, per_host)


def test_what_is_owned_costs_its_power_alone() -> None:
    rented, owned = fleet(kinds=("h100-sxm",), owned=("h100-sxm=8",)).hardware
    assert rented.price_usd_per_gpu_hour > 0
    assert owned.price_usd_per_gpu_hour == pytest.approx(0.7 * 0.15)
    assert owned.power == rented.power


def test_the_network_is_the_slowest_kinds_or_what_is_given() -> None:
    kinds = ("h100-sxm", "l4")
    assert fleet(kinds=kinds).network == fleet(kinds=("l4",)).network
    assert fleet(kinds=kinds, network_gbps=100).network.host_bytes_per_s == 12.5e9


def test_a_file_of_the_user_overrides_prices(tmp_path: Path) -> None:
    prices = tmp_path / "mine.toml"
    prices.write_text("[gpus.l4]\nprice_per_hour = 0.25\n")
    (hardware,) = fleet(kinds=("l4",), files=(prices,)).hardware
    assert hardware.price_usd_per_gpu_hour == 0.25


REFUSED = [
    ({"kinds": ()}, "--gpu is needed"),
    ({"kinds": ("l4=x",)}, "NAME=N"),
    ({"kinds": ("h100-sxm=12",)}, "whole hosts"),
    ({"kinds": ("l4", "l4")}, "named twice"),
    ({"kinds": ("l4",), "num_gpus": 0}, "--gpus must be at least 1"),
    ({"kinds": ("l4",), "network_gbps": 0.0}, "--network-gbps"),
]


@pytest.mark.parametrize(("asked", "says"), REFUSED)
def test_refused(asked: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fleet(**asked)
