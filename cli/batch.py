"""`baton batch`: a file of requests in, a file of answers out."""

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.errors import error_console, serve_extra_missing
from cli.running import http_now
from core.errors import BatonError


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """The command line."""

    source: Path
    target: Path
    address: str | None
    max_in_flight: int
    priority: int
    json_output: bool


def answer_batch(job: BatchJob) -> None:
    """Exit status 0 when every line has an answer, 1 when some were refused or have none."""
    console = error_console()
    try:
        asyncio.run(_run(job, console))
    except ModuleNotFoundError as error:
        console.print(serve_extra_missing(error))
        raise typer.Exit(4) from None
    except KeyboardInterrupt:
        console.print("interrupted; run it again to go on where it stopped")
        raise typer.Exit(130) from None
    except OSError as error:
        console.print(f"{error.filename}: {error.strerror}")
        raise typer.Exit(2) from None
    except BatonError as error:
        console.print(str(error), markup=False)
        raise typer.Exit(2 if error.status == "INVALID_ARGUMENT" else 1) from None


async def _run(job: BatchJob, console: Console) -> None:
    from router.batch.journal import open_journal
    from router.batch.lines import read_lines
    from router.batch.run import BatchOptions, run_batch

    with job.source.open(encoding="utf-8", errors="replace") as source:
        lines = read_lines(source)
    address = (await http_now(job.address))[0]
    base_url = address if "://" in address else f"http://{address}"
    options = BatchOptions(
        base_url=base_url, max_in_flight=job.max_in_flight, priority=job.priority
    )
    with open_journal(job.target) as journal, _bar(console) as bar:
        ids = {line.custom_id for line in lines}
        num_before = len(ids & journal.done)
        task = bar.add_task("answered", total=len(lines), completed=num_before)
        summary = await run_batch(lines, journal, options, lambda _: bar.advance(task))
    figures = asdict(summary) | {"num_lines": len(lines), "num_before": num_before}
    if job.json_output:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        console.print(_words(figures, job.target), markup=False)
    if summary.num_refused or summary.num_unanswered:
        raise typer.Exit(1)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def _words(figures: dict[str, object], target: Path) -> str:
    prompt, cached = figures["num_prompt_tokens"], figures["num_cached_tokens"]
    lines = [
        f"{figures['num_good']} answered, {figures['num_before']} had been before; all in {target}",
        f"{prompt} prompt tokens, {cached} of them from the prefix cache;"
        f" {figures['num_output_tokens']} output tokens",
    ]
    if figures["num_refused"]:
        lines.append(f"{figures['num_refused']} refused, see the output: {figures['errors']}")
    if figures["num_unanswered"]:
        lines.append(
            f"{figures['num_unanswered']} unanswered: {figures['errors']};"
            " run it again to try these"
        )
    return "\n".join(lines)
