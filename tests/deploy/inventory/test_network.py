"""Interfaces as Linux tells of them."""

from pathlib import Path

import pytest

from core.inventory import NetworkLink
from deploy.inventory.network import network_links

LINKS = [
    # id               files                                      has a device  up     bytes/s
    ("100 Gbit/s", {"operstate": "up", "speed": "100000"}, True, True, 12.5e9),
    ("down", {"operstate": "down", "speed": "-1"}, True, False, None),
    ("virtual", {"operstate": "up", "speed": "10000"}, False, True, 1.25e9),
    ("speed 0", {"operstate": "up", "speed": "0"}, True, True, None),
    ("wireless", {"operstate": "up"}, True, True, None),
    ("nothing", {}, False, False, None),
]


@pytest.mark.parametrize(
    ("files", "has_device", "is_up", "bytes_per_s"),
    [c[1:] for c in LINKS],
    ids=[c[0] for c in LINKS],
)
def test_links(
    files: dict[str, str],
    has_device: bool,
    is_up: bool,
    bytes_per_s: float | None,
    tmp_path: Path,
) -> None:
    for name in ("lo", "eth0"):
        folder = tmp_path / "sys/class/net" / name
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(f"{text}\n")
        if has_device:
            (folder / "device").mkdir()
    assert network_links(tmp_path) == (
        NetworkLink(name="eth0", is_up=is_up, is_physical=has_device, bytes_per_s=bytes_per_s),
    )


def test_a_system_without_sys_has_none(tmp_path: Path) -> None:
    assert network_links(tmp_path) == ()


def test_what_is_no_interface_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/net"
    folder.mkdir(parents=True)
    (folder / "bonding_masters").write_text("bond0\n")
    assert network_links(tmp_path) == ()
