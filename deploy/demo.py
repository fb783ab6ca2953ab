"""`make demo`: the main job for real, from an empty machine to three answers and nothing left."""

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from core.config import Config
from core.errors import BatonError
from core.plan import Plan
from deploy.cluster import Cluster, ClusterSpec, start_cluster, threads_per_instance
from deploy.default_model import default_model_dir, fetch_default_model
from deploy.interrupt import Interrupted, terminate_like_ctrl_c, until_signal
from deploy.memory import available_memory_bytes, check_memory
from deploy.timing_table import timing_table
from router.client import AsyncClient
from router.events import Delta, Finished

QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
    "Give three tips for learning to play the piano.",
)
MAX_TOKENS = 64
NEEDED_MEMORY_BYTES = 3_000_000_000
"""Two instances with 540 MB of weights and 190 MB of KV each, Ray, and the router; peak 2.6 GB."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's answer as it arrived."""

    question: str
    text: str
    finished: Finished


def main() -> int:
    """Run the demo; 0 when every answer came."""
    console = Console(highlight=False)
    started_s = time.monotonic()
    terminate_like_ctrl_c()
    try:
        check_memory(NEEDED_MEMORY_BYTES, available_memory_bytes())
        model_dir = _fetch(console)
        answers = asyncio.run(until_signal(_demo(model_dir, console)))
    except Interrupted as interrupted:
        console.print(f"\ndemo: {interrupted}")
        return interrupted.exit_status
    except KeyboardInterrupt:  # while the model is fetched
        console.print("\ndemo: interrupted; run it again to finish")
        return 128 + signal.SIGINT
    except BatonError as error:
        console.print(f"demo: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    console.print(timing_table([answer.finished for answer in answers]))
    console.print(f"everything is stopped; {time.monotonic() - started_s:.0f} s in all")
    return 0


def _fetch(console: Console) -> Path:
    if default_model_dir().is_dir():
        return default_model_dir()
    with console.status("default model") as status:
        return fetch_default_model(
            on_progress=lambda step, done: status.update(f"default model: {step} {done:.0%}")
        )


async def _demo(model_dir: Path, console: Console) -> list[Answer]:
    plan = Plan()
    config = Config()
    engine = replace(config.engine, num_threads=threads_per_instance(plan), num_blocks=256)
    spec = ClusterSpec(plan=plan, model_dir=model_dir, config=replace(config, engine=engine))
    async with start_cluster(spec, lambda text: console.print(f"· {text}", style="dim")) as cluster:
        await _introduce(cluster, console)
        async with AsyncClient(cluster.router_addresses) as client:
            screen = _Screen(console)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_ask(client, number, screen))
                    for number in range(len(QUESTIONS))
                ]
    return [task.result() for task in tasks]


async def _introduce(cluster: Cluster, console: Console) -> None:
    pids = {name: await cluster.pid(name) for name in cluster.actors}
    processes = ", ".join(f"{name} (process {pid})" for name, pid in pids.items())
    console.print(f"· running: {processes}", style="dim")


async def _ask(client: AsyncClient, number: int, screen: "_Screen") -> Answer:
    text = ""
    question = QUESTIONS[number]
    async for event in client.generate(
        messages=[{"role": "user", "content": question}],
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        timeout_s=120.0,
    ):
        if isinstance(event, Delta):
            text += event.text
            screen.add(number, event.text)
        elif isinstance(event, Finished):
            screen.end(number)
            return Answer(question, text, event)
    raise BatonError(f"the answer to question {number + 1} did not end")


class _Screen:
    """Three answers at once on a screen that only scrolls: one is live, the others wait."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pending = [""] * len(QUESTIONS)
        self._ended = [False] * len(QUESTIONS)
        self._live = 0
        self._headline()

    def add(self, number: int, text: str) -> None:
        """New text of one answer."""
        self._pending[number] += text
        self._flush()

    def end(self, number: int) -> None:
        """An answer is complete."""
        self._ended[number] = True
        self._flush()

    def _flush(self) -> None:
        while self._live < len(QUESTIONS):
            self._write(self._pending[self._live])
            self._pending[self._live] = ""
            if not self._ended[self._live]:
                return
            self._write("\n")
            self._live += 1
            self._headline()

    def _headline(self) -> None:
        if self._live < len(QUESTIONS):
            self._console.print(f"\n[bold]{QUESTIONS[self._live]}[/bold]")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


if __name__ == "__main__":
    sys.exit(main())
