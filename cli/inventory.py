"""`baton inventory`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cli.errors import error_console, errors_told
from cli.planning import BAD_INPUT, out_console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from core.inventory import GpuLink, HostGpu, HostInventory

GB = 1e9
UNKNOWN = "–"


def inventory(
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it as JSON, for `baton plan --inventory`."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Show this host's GPUs, what joins them, and its network.

    NVIDIA's driver is asked; nothing is measured and nothing is changed. For a plan with the GPUs
    that there are, run it on every host and give the planner all files:

    `baton plan llama-3.1-8b --inventory a.json --inventory b.json --workload azure-conv
    --slo ttft=0.5,tpot=0.05`
    """
    show_inventory(json_output=json_output, out=out)


def show_inventory(*, json_output: bool, out: Path | None) -> None:
    """Tables, or JSON; errors are one line and exit status 1, or 2 for a file not written."""
    console = error_console()
    with errors_told(console):
        from deploy.inventory.host import read_inventory
        from deploy.inventory.nvml import load_nvml

        found = read_inventory(load_nvml())
        if json_output:
            sys.stdout.write(found.to_json())
        else:
            _show(found, out_console())
    if out is not None:
        _write(found, out, console)


def _write(found: "HostInventory", out: Path, console: Console) -> None:
    try:
        out.write_text(found.to_json(), encoding="utf-8")
    except OSError as error:
        console.print(f"{out}: {error.strerror}")
        raise typer.Exit(BAD_INPUT) from None
    console.print(f"inventory: {out}")


def _show(found: "HostInventory", console: Console) -> None:
    memory = "" if found.memory_bytes is None else f", {found.memory_bytes / GB:.0f} GB of memory"
    driver = "" if found.driver is None else f", NVIDIA driver {found.driver}"
    console.print(f"{found.host}: {found.num_cores} cores{memory}{driver}")
    if found.gpus:
        console.print(gpu_table(found))
    else:
        console.print(f"no GPUs: {found.why_no_gpus}")
    if found.gpu_links:
        console.print()
        console.print(link_table(found))
    console.print(network_line(found), soft_wrap=True)


def gpu_table(found: "HostInventory") -> Table:
    """A row for each GPU."""
    from policy.found_gpus import entry_of
    from policy.hardware import catalogue

    known = catalogue()
    table = _table("GPU", "name", "planned as", "memory GB", "power W", "PCIe", "NVLink", "ECC")
    for gpu in found.gpus:
        key = entry_of(known, gpu.name, gpu.memory_bytes)
        table.add_row(*_gpu_row(gpu, key or "not in the catalogue"))
    return table


def _gpu_row(gpu: "HostGpu", key: str) -> "Iterator[str]":
    yield str(gpu.index)
    yield gpu.name + (" (MIG)" if gpu.has_mig else "")
    yield key
    yield _of(gpu.memory_used_bytes, gpu.memory_bytes, GB, ".1f")
    yield _of(gpu.power_w, gpu.power_limit_w, 1, ".0f")
    yield (gpu.pcie or UNKNOWN).removeprefix("PCIe ")
    yield f"{gpu.num_nvlinks} of {gpu.nvlink}" if gpu.num_nvlinks else UNKNOWN
    yield UNKNOWN if gpu.has_ecc is None else "on" if gpu.has_ecc else "off"


def _of(used: float | None, whole: float | None, unit: float, form: str) -> str:
    """Now and at most."""
    return " of ".join(UNKNOWN if n is None else f"{n / unit:{form}}" for n in (used, whole))


def link_table(found: "HostInventory") -> Table:
    """What joins each pair: NVLinks by number, else PCIe; GB/s per direction."""
    pairs = {(link.first, link.second): link for link in found.gpu_links}
    indexes = [gpu.index for gpu in found.gpus]
    table = _table("GB/s", *map(str, indexes))
    for row in indexes:
        cells = (pairs.get((min(row, column), max(row, column))) for column in indexes)
        table.add_row(str(row), *(_cell(link) for link in cells))
    return table


def _cell(link: "GpuLink | None") -> str:
    if link is None:
        return ""
    kind = f"NV{link.num_nvlinks}" if link.num_nvlinks else link.kind
    speed = UNKNOWN if link.bytes_per_s is None else f"{link.bytes_per_s / GB:g}"
    return f"{kind} {speed}"


def network_line(found: "HostInventory") -> str:
    """The interfaces that are up, and what they come to."""
    links = [link for link in found.network if link.is_up and link.is_physical]
    shown = (
        f"{link.name} {UNKNOWN if link.bytes_per_s is None else f'{link.bytes_per_s / GB:g} GB/s'}"
        for link in links
    )
    whole = found.network_bytes_per_s
    total = "speed not known: say --network-gbps" if whole is None else f"{whole / GB:g} GB/s"
    return f"network: {total} ({', '.join(shown) or 'nothing is up'})"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
