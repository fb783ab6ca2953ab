"""Many answers by OpenAI's API, read with as little work as can be: the router is measured."""

import asyncio
from collections.abc import Sequence

import aiohttp

from bench.raw_stream import TIMEOUT_S

LAST = b'"choices":[],'
"""Of the chunk that has the usage of the whole answer."""


async def read_many_http(
    address: str, prompts: Sequence[Sequence[int]], num_tokens: int
) -> list[int]:
    """One stream per prompt, all at once; how many tokens each says it had."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with (
        aiohttp.ClientSession(f"http://{address}", connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(_read(session, prompt, num_tokens)) for prompt in prompts]
    return [task.result() for task in tasks]


async def _read(session: aiohttp.ClientSession, prompt: Sequence[int], num_tokens: int) -> int:
    body = {
        "prompt": list(prompt),
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = b""
    async with session.post("/v1/completions", json=body) as reply:
        async for chunk in reply.content.iter_any():
            # Only the end is looked at.
            data = (data + chunk)[-1024:]
    _, _, usage = data.rpartition(b'"completion_tokens":')
    return int(usage.partition(b",")[0] or -1) if LAST in data else -1
