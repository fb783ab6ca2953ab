"""What every benchmark returns, prints and writes."""

import json
import os
import platform
import socket
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

NUM_TURNS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One claim: `value` against `bound`, smaller or larger is better."""

    name: str
    value: float
    bound: float
    unit: str
    at_most: bool = True

    @property
    def holds(self) -> bool:
        """Whether the claim stands."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Repeated measurements of one thing."""

    name: str
    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.values)

    def quantile(self, share: float) -> float:
        """The smallest value that `share` (0-1) of all are not above."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One benchmark's outcome."""

    name: str
    figures: tuple[Figure, ...]
    bars: tuple[Bar, ...]

    @property
    def num_holding(self) -> int:
        """Bars that hold."""
        return sum(bar.holds for bar in self.bars)

    def show(self, console: Console) -> None:
        """Tables for people."""
        console.print(_figures_table(self.name, self.figures))
        console.print(_bars_table(self.bars))
        console.print(f"machine: {', '.join(f'{key} {value}' for key, value in machine().items())}")
        console.print(f"{self.num_holding} of {len(self.bars)} bars hold")

    def write(self, path: Path) -> None:
        """JSON for programs."""
        document = {
            "name": self.name,
            "machine": machine(),
            "commit": commit(),
            "results": {f.name: {"unit": f.unit, "values": f.values} for f in self.figures},
            "bars": [asdict(bar) | {"holds": bar.holds} for bar in self.bars],
        }
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def figure(name: str, values: Iterable[float], unit: str) -> Figure:
    """A Figure of at least one value."""
    collected = tuple(values)
    if not collected:
        raise ValueError(f"{name}: nothing was measured")
    return Figure(name=name, values=collected, unit=unit)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "loopback_us": round(1e6 * _loopback_s(), 1),
    }


def _loopback_s() -> float:
    """Of a byte through a TCP connection to ourselves, best of five: machines of one name differ by
    a factor of four from day to day, and with them what is measured in seconds."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return min(_turns_s(one, other) for _ in range(5)) / NUM_TURNS


def _turns_s(one: socket.socket, other: socket.socket) -> float:
    began_s = time.perf_counter()
    for _ in range(NUM_TURNS):
        one.send(b"x")
        other.recv(1)
    return time.perf_counter() - began_s


def commit() -> str:
    """The commit measured, with + when the tree differs from it; empty outside a checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _figures_table(name: str, figures: Sequence[Figure]) -> Table:
    table = Table(title=f"bench {name}")
    for column in ("figure", "median", "min", "p99", "max", "n", "unit"):
        table.add_column(column, justify="left" if column in ("figure", "unit") else "right")
    for f in figures:
        cells = (f.median, min(f.values), f.quantile(0.99), max(f.values))
        table.add_row(f.name, *(f"{cell:.4g}" for cell in cells), str(len(f.values)), f.unit)
    return table


def _bars_table(bars: Sequence[Bar]) -> Table:
    table = Table(title="bars")
    for column in ("bar", "value", "bound", "unit", "holds"):
        table.add_column(column, justify="left" if column in ("bar", "unit") else "right")
    for bar in bars:
        sign = "≤" if bar.at_most else "≥"
        table.add_row(
            bar.name,
            f"{bar.value:.4g}",
            f"{sign} {bar.bound:.4g}",
            bar.unit,
            "yes" if bar.holds else "NO",
        )
    return table
