"""`python -m bench NAME [--json FILE] [--quick] [--only PART]`."""

import importlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

NAMES = (
    *("smoke", "engine", "ranks", "kv_transfer", "handoff", "router", "load", "planner"),
    *("planner_figures", "gpu"),
)
_MODULES = {"load": "load_reference"}
"""Where it is not the name: bench.load is the load generator itself."""

app = typer.Typer(add_completion=False, help="Measure Baton's claims, baselines in the same run.")


@app.command()
def run(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(NAMES)}.")] = "smoke",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write JSON here.")] = None,
    only: Annotated[str | None, typer.Option(help="Only this part, where there are parts.")] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions, same bars.")] = False,
) -> None:
    """Run one benchmark; exit status 1 when a bar does not hold."""
    console = Console(stderr=False)
    if name not in NAMES:
        console.print(f"no benchmark {name!r}; there are: {', '.join(NAMES)}")
        raise typer.Exit(2)
    with console.status(f"bench {name}") as status:
        module = importlib.import_module(f"bench.{_MODULES.get(name, name)}")
        parts = getattr(module, "PARTS", ())
        if only is not None and only not in parts:
            console.print(f"{name} has no part {only!r}; there are: {', '.join(parts) or 'none'}")
            raise typer.Exit(2)
        choice = {} if only is None else {"only": only}
        report = module.measure(quick=quick, on_progress=lambda text: status.update(text), **choice)
    report.show(console)
    if json_file is not None:
        report.write(json_file)
    if report.num_holding < len(report.bars):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
