"""The network interfaces of this host, as Linux tells of them in /sys."""

from pathlib import Path

from core.inventory import MAX_NETWORK_LINKS, NetworkLink

MBIT_BYTES = 1e6 / 8
LOOPBACK = "lo"


def network_links(system: Path = Path("/")) -> tuple[NetworkLink, ...]:
    """By name; none where the system has no /sys."""
    try:
        folders = sorted((system / "sys/class/net").iterdir())
    except OSError:
        return ()
    found = (folder for folder in folders if folder.is_dir() and folder.name != LOOPBACK)
    return tuple(_link(folder) for folder in found)[:MAX_NETWORK_LINKS]


def _link(folder: Path) -> NetworkLink:
    return NetworkLink(
        name=folder.name,
        is_up=_read(folder / "operstate") == "up",
        is_physical=(folder / "device").exists(),
        bytes_per_s=_bytes_per_s(_read(folder / "speed")),
    )


def _bytes_per_s(mbit_per_s: str) -> float | None:
    """-1, 0 or nothing: a link that is down, or a driver that does not say."""
    return int(mbit_per_s) * MBIT_BYTES if mbit_per_s.isdecimal() and int(mbit_per_s) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
