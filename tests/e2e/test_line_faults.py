"""Lines between real processes that stall, damage, lose and repeat KV: the answers are exact."""

import asyncio
from pathlib import Path

from bench import processes
from core.config import Config, EngineConfig, HandoffConfig, WorkerConfig
from core.member import Role
from tests.e2e.asking import Answer, ask, questions
from tests.e2e.books import what_stays
from tests.e2e.oracle import Oracle, compare_all

ROLES = (Role.PREFILL, Role.PREFILL, Role.DECODE)
FAULTS = (
    "kv.open=error@2",
    "kv.send.frame=stall@5",
    "kv.send.frame=flip@20",
    "kv.send.frame=drop@35",
    "kv.send.frame=duplicate@50",
    "kv.receive.segment=truncate@15",
    "kv.commit=error@6",
)
"""In each process, by its own count. Some are mended within the attempt, some cost it."""
CONFIG = Config(
    engine=EngineConfig(num_blocks=64, block_size=16),
    worker=WorkerConfig(prefill_step_tokens=16),
    handoff=HandoffConfig(
        carrier="grpc",
        progress_timeout_s=0.5,
        lease_ttl_s=2.0,
        max_segment_bytes=4096,
        failpoints=",".join(FAULTS),
    ),
)
NUM_QUESTIONS = 24
AT_ONCE = 4


async def test_every_answer_is_exact(tiny_dir: Path, tiny_oracle: Oracle) -> None:
    asked = questions(
        NUM_QUESTIONS, vocab_size=512, prompt_tokens=range(40, 90), output_tokens=range(4, 12)
    )
    answers: list[Answer] = []
    async with processes.running(tiny_dir, ROLES, CONFIG) as running:
        client = running.client
        for i in range(0, NUM_QUESTIONS, AT_ONCE):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask(client, q)) for q in asked[i : i + AT_ONCE]]
            answers += [task.result() for task in tasks]
        for channel in running.channels:
            assert await what_stays(channel) is None
    compare_all(tiny_oracle, answers)
    # Each prefill process stalled once; whoever met that was placed anew.
    num_again = sum(answer.finished.timing.num_attempts > 1 for answer in answers)
    print(f"{num_again} of {NUM_QUESTIONS} requests were placed more than once")
    assert num_again >= 2
