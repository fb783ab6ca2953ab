"""`baton generate`."""

import asyncio
import json
import sys
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.errors import error_console, errors_told
from cli.running import routers_now
from core.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console

    from router.events import Finished
    from router.progress import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The command line."""

    prompt: str
    address: str | None
    max_tokens: int
    temperature: float
    seed: int | None
    logprobs: int | None
    json_schema: Path | None
    regex: str | None
    tenant: str
    priority: int
    raw: bool
    json_output: bool


def ask(question: Question) -> None:
    """Stream the answer to standard output; errors are one line and exit status 1 or 4."""
    console = error_console()
    with errors_told(console):
        asyncio.run(_ask(question, console))


async def _ask(question: Question, console: "Console") -> None:
    from router.client import AsyncClient
    from router.events import Accepted, Delta, Finished

    prompt = sys.stdin.read() if question.prompt == "-" else question.prompt
    options = options_of(question)
    if not question.raw:
        options["messages"] = [{"role": "user", "content": prompt}]
    async with AsyncClient(await routers_now(question.address)) as client:
        stream = client.generate(prompt if question.raw else None, **options)
        async with aclosing(stream) as events:
            async for event in events:
                match event:
                    case _ if question.json_output:
                        _write(json.dumps({"event": type(event).__name__, **asdict(event)}) + "\n")
                    case Delta(text=text):
                        _write(text)
                    case Finished():
                        _write("\n")
                        console.print(_summary(event), style="dim")
                    case Accepted():
                        pass


def options_of(question: Question) -> "Options":
    """All but the prompt."""
    options: Options = {
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "tenant": question.tenant,
        "priority": question.priority,
    }
    if question.seed is not None:
        options["seed"] = question.seed
    if question.logprobs is not None:
        options["logprobs"] = question.logprobs
    if question.json_schema is not None:
        options["json_schema"] = _read_text(question.json_schema)
    if question.regex is not None:
        options["regex"] = question.regex
    return options


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest((FieldViolation(str(path), f"must be UTF-8: {error}"),)) from None


def _summary(finished: "Finished") -> str:
    timing = finished.timing
    return (
        f"{finished.num_output_tokens} tokens, {finished.reason.value}; "
        f"TTFT {timing.ttft_s * 1e3:.0f} ms, first gap {timing.first_gap_s * 1e3:.0f} ms, "
        f"TPOT {timing.tpot_s * 1e3:.0f} ms; "
        f"{timing.prefill_instance_id} → {timing.decode_instance_id or 'nobody'}"
    )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
