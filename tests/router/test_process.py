"""A router as a process of its own: says where it is, and ends with whoever started it."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.config import RouterConfig
from core.errors import ConfigError
from core.ids import RouterId
from registry.connect import connect
from registry.embedded import EmbeddedValkey
from router.client import AsyncClient
from router.spec import RouterSpec
from tests.router.fake_model import expected
from tests.router.fakes import instances
from tests.router.script import BOUND_S

PROMPT = (5, 6, 7)
START_S = 30.0
"""Imports on a busy machine."""


def spec_of(model_dir: Path, url: str, name: str = "router-0") -> RouterSpec:
    return RouterSpec(
        router_id=RouterId(name),
        model_dir=model_dir,
        registry_url=url,
        cluster="test",
        config=RouterConfig(max_attempts=3),
        drain_s=1.0,
    )


@asynccontextmanager
async def router(spec: RouterSpec) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router.server", "--spec-json", spec.to_json()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with asyncio.timeout(START_S):
            address = json.loads(await process.stdout.readline())["address"]
        yield process, address
    finally:
        process.stdin.close()
        async with asyncio.timeout(BOUND_S):
            await process.wait()


def test_spec_survives_json(model_dir: Path) -> None:
    spec = spec_of(model_dir, "redis://127.0.0.1:1")
    assert RouterSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"config": {"nope": 1}}'])
def test_bad_specs_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        RouterSpec.from_json(text)


async def test_one_router_is_killed_and_the_other_goes_on(model_dir: Path) -> None:
    async with EmbeddedValkey() as valkey, instances("pd") as peers:
        registry = connect(valkey.url, "test")
        for peer in peers.values():
            await registry.announce(peer.member(), ttl_s=60.0)
        first, second = (spec_of(model_dir, valkey.url, f"router-{i}") for i in range(2))
        async with router(first) as (process, one), router(second) as (survivor, other):
            for peer in peers.values():
                await peer.until(lambda p: len({s.router_id for s in p.subscriptions}) == 2)
            async with AsyncClient([one, other]) as client:
                token_ids: list[int] = []
                async for event in client.generate(token_ids=PROMPT, max_tokens=200, seed=3):
                    token_ids += getattr(event, "token_ids", ())
                    if token_ids and process.returncode is None:
                        process.send_signal(signal.SIGKILL)
                        await process.wait()
            members = {member.instance_id for member in await registry.members()}
            assert "router-1" in members
        await registry.close()
    assert token_ids == expected(PROMPT, 200, seed=3)
    assert survivor.returncode == 0
