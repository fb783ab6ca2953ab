"""Runs a batch: every line answered once, in the order that computes least."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from router.batch.ask import TIMEOUT_S, Answer, ask
from router.batch.journal import Journal
from router.batch.lines import BatchLine
from router.batch.order import order
from router.batch.turns import Turns

Progress = Callable[[Answer], None]


@dataclass(slots=True, kw_only=True)
class Summary:
    """What came of the lines that were left."""

    num_good: int = 0
    num_refused: int = 0
    """Answered with an error that asking again would not change."""
    num_unanswered: int = 0
    """Not in the output: the next run asks them again."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens whose KV was there already."""
    num_output_tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def count(self, answer: Answer) -> None:
        """One more."""
        if not answer.is_final:
            self.num_unanswered += 1
            self.errors[answer.error or f"HTTP {answer.status}"] += 1
        elif not answer.is_good:
            self.num_refused += 1
            self.errors[_code(answer)] += 1
        else:
            self.num_good += 1
            self._count_tokens((answer.body or {}).get("usage") or {})

    def _count_tokens(self, usage: dict[str, Any]) -> None:
        self.num_prompt_tokens += usage.get("prompt_tokens", 0)
        self.num_output_tokens += usage.get("completion_tokens", 0)
        details = usage.get("prompt_tokens_details") or {}
        self.num_cached_tokens += details.get("cached_tokens") or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How to run."""

    base_url: str
    """For example http://127.0.0.1:8000."""
    max_in_flight: int = 64
    priority: int = 10
    """Of lines that name none; as in vLLM, higher goes last."""


async def run_batch(
    lines: Sequence[BatchLine],
    journal: Journal,
    options: BatchOptions,
    on_answer: Progress = lambda _: None,
) -> Summary:
    """Answer what the journal does not have yet."""
    left = [line for line in lines if line.custom_id not in journal.done]
    turns, summary = Turns(order([line.prompt for line in left])), Summary()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=10.0)
    connector = aiohttp.TCPConnector(limit=options.max_in_flight)
    running: dict[asyncio.Task[Answer], int] = {}
    async with (
        aiohttp.ClientSession(options.base_url, timeout=timeout, connector=connector) as session,
        asyncio.TaskGroup() as group,
    ):
        while True:
            while len(running) < options.max_in_flight and (index := turns.next()) is not None:
                task = group.create_task(ask(session, left[index], options.priority))
                running[task] = index
            if not running:
                return summary
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = running.pop(task)
                turns.done(index)
                _note(left[index], task.result(), journal, summary)
                on_answer(task.result())


def _note(line: BatchLine, answer: Answer, journal: Journal, summary: Summary) -> None:
    summary.count(answer)
    if not answer.is_final:
        return
    journal.add(
        {
            "id": f"batch_req_{answer.request_id}",
            "custom_id": line.custom_id,
            "response": {
                "status_code": answer.status,
                "request_id": answer.request_id,
                "body": answer.body,
            },
            "error": None,
        }
    )


def _code(answer: Answer) -> str:
    error = (answer.body or {}).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return str(code or f"HTTP {answer.status}")
