"""A host's inventory reads back as it was written; what is wrong with a file is told at once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.inventory import (
    MAX_BYTES,
    MAX_GPUS,
    NVLINK,
    PCIE,
    GpuLink,
    HostGpu,
    HostInventory,
    NetworkLink,
    load_inventory,
)

HOST = HostInventory(
    host="a",
    num_cores=64,
    memory_bytes=2**39,
    driver="580.1",
    gpus=tuple(HostGpu(index=i, name="GPU", memory_bytes=8 * 10**10) for i in range(3)),
    gpu_links=(
        GpuLink(first=0, second=1, kind=NVLINK, num_nvlinks=4, bytes_per_s=100e9),
        GpuLink(first=0, second=2, kind=PCIE, bytes_per_s=32e9),
        GpuLink(first=1, second=2, kind=PCIE),
    ),
    network=(NetworkLink(name="eth0", is_up=True, is_physical=True, bytes_per_s=12.5e9),),
)

numbers = st.none() | st.integers(0, 2**50)
floats = st.none() | st.floats(0, 1e15)
texts = st.none() | st.text(max_size=20)
hosts = st.builds(
    HostInventory,
    schema=st.just(1),
    host=st.text(max_size=20),
    num_cores=st.integers(1, 1000),
    memory_bytes=numbers,
    driver=texts,
    why_no_gpus=texts,
    gpus=st.lists(
        st.builds(
            HostGpu,
            index=st.integers(0, 100),
            name=st.text(max_size=20),
            num_nvlinks=st.integers(0, 18),
            memory_bytes=numbers,
            power_w=floats,
            nvlink=texts,
            has_mig=st.none() | st.booleans(),
        ),
        max_size=4,
        unique_by=lambda gpu: gpu.index,
    ).map(tuple),
    gpu_links=st.just(()),
    network=st.lists(
        st.builds(
            NetworkLink,
            name=st.text(max_size=20),
            is_up=st.booleans(),
            is_physical=st.booleans(),
            bytes_per_s=floats,
        ),
        max_size=4,
    ).map(tuple),
)


@given(hosts)
def test_it_reads_back(host: HostInventory) -> None:
    assert HostInventory.from_json(host.to_json()) == host


def test_a_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    path.write_text(HOST.to_json(), encoding="utf-8")
    assert load_inventory(path) == HOST


def test_between_two_gpus_in_either_order() -> None:
    assert HOST.gpu_bytes_per_s(0, 1) == HOST.gpu_bytes_per_s(1, 0) == 100e9
    assert HOST.gpu_bytes_per_s(1, 2) is None
    assert HOST.gpu_bytes_per_s(0, 9) is None


@pytest.mark.parametrize(
    ("among", "bytes_per_s"), [({0, 1}, 100e9), ({0, 1, 2}, 32e9), ({1, 2}, None), ({0}, None)]
)
def test_the_slowest_of_some(among: set[int], bytes_per_s: float | None) -> None:
    found = HOST.slowest_gpu_link(among)
    assert (None if found is None else found.bytes_per_s) == bytes_per_s


NETWORKS = [
    # id                  (name, up, physical, bytes/s)                                   whole
    ("none", [], None),
    ("one", [("eth0", True, True, 12.5e9)], 12.5e9),
    ("as fast ones add up", [("a", True, True, 50e9), ("b", True, True, 50e9)], 100e9),
    ("one for management", [("a", True, True, 50e9), ("b", True, True, 1.25e9)], 50e9),
    ("a bridge of containers", [("a", True, True, 1e9), ("docker0", True, False, 9e9)], 1e9),
    ("a cable is out", [("a", True, True, 1e9), ("b", False, True, 9e9)], 1e9),
    ("not told", [("a", True, True, None)], None),
]


@pytest.mark.parametrize(
    ("links", "whole"), [c[1:] for c in NETWORKS], ids=[c[0] for c in NETWORKS]
)
def test_the_way_to_other_hosts(
    links: list[tuple[str, bool, bool, float | None]], whole: float | None
) -> None:
    network = tuple(
        NetworkLink(name=name, is_up=up, is_physical=physical, bytes_per_s=speed)
        for name, up, physical, speed in links
    )
    assert replace(HOST, network=network).network_bytes_per_s == whole


def changed(**values: object) -> str:
    document: dict[str, Any] = json.loads(HOST.to_json())
    return json.dumps({**document, **values})


GPU = {"index": 0, "name": "GPU"}
LINK = {"first": 0, "second": 1, "kind": PCIE}
REFUSED = [
    # id                text                                            says
    ("no JSON", "{", "inventory: "),
    ("no number", '{"num_cores": NaN}', "NaN is no number"),
    ("no object", "[]", "inventory must be HostInventory"),
    ("other schema", changed(schema=2), "schema must be 1, got 2"),
    ("no host", "{}", "host"),
    ("unknown key", changed(gpu=1), "unknown key 'gpu'"),
    ("no cores", changed(num_cores=0), "num_cores must be at least 1"),
    ("text for a number", changed(memory_bytes="1"), "memory_bytes must be int, got str"),
    ("GPUs of one index", changed(gpus=[GPU, GPU], gpu_links=[]), "two GPUs have one index"),
    ("too many", changed(gpus=[GPU] * (MAX_GPUS + 1), gpu_links=[]), "at most 64 GPUs, got 65"),
    ("link to nowhere", changed(gpus=[GPU, {**GPU, "index": 2}], gpu_links=[LINK]), "0 and 1"),
    ("link to itself", changed(gpu_links=[{**LINK, "second": 0}]), "got 0 and 0"),
    ("more links than pairs", changed(gpu_links=[LINK] * 4), "3 GPUs are 3 pairs, got 4"),
    ("negative speed", changed(gpu_links=[{**LINK, "bytes_per_s": -1.0}]), "at least 0, got -1"),
    ("long name", changed(gpus=[{**GPU, "name": "x" * 257}], gpu_links=[]), "at most 256"),
    ("too large", " " * (MAX_BYTES + 1), "at most 1048576 characters"),
]


@pytest.mark.parametrize(("text", "says"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HostInventory.from_json(text)
    assert says in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"host\.json"):
        load_inventory(path)
