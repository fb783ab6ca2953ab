"""The mixed pool and prefill on decode instances, on scripted instances behind real gRPC."""

import asyncio

from core.config import RouterConfig
from tests.router.conftest import OpenStage, Stage
from tests.router.fake_model import expected
from tests.router.script import BOUND_S
from tests.router.test_slo import BUSY, busy

PROMPT = [5, 6, 7]


async def test_an_instance_helps_the_other_pool_and_returns(stage: OpenStage) -> None:
    on = await stage("pdd", config=RouterConfig(help_above_s=1.0))
    await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=0)
    assert len(on["p0"].prefills) == 1
    await busy(on, BUSY)
    # The one prefill instance is a minute behind: a decode instance reads the prompts meanwhile,
    # and keeps its role.
    helping = await _until_helped(on)
    assert [name for name in ("d0", "d1") if on[name].prefills] == [helping]
    num_before = len(on["p0"].prefills)
    for _ in range(3):
        (answer,) = await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=0)
        assert list(answer.token_ids) == expected(PROMPT, 3)
    assert len(on["p0"].prefills) == num_before
    await busy(on, 0)
    # Both serve until it is seen that the pool can do without: then only its own.
    in_a_row = 0
    async with asyncio.timeout(BOUND_S):
        while in_a_row < 8:
            num_before = len(on["p0"].prefills)
            await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=0)
            in_a_row = in_a_row + 1 if len(on["p0"].prefills) > num_before else 0


async def _until_helped(on: Stage) -> str:
    """Who helps is looked at every 50 ms: some requests later. Its name."""
    async with asyncio.timeout(BOUND_S):
        while True:
            await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=0)
            for name in ("d0", "d1"):
                if on[name].prefills:
                    return name


async def test_the_last_decode_instance_does_not_help(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(help_above_s=1.0))
    await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=0)
    await busy(on, BUSY)
    await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=0)
    assert not on["d0"].prefills


async def test_a_short_prompt_is_read_where_it_is_answered(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(max_local_prefill_tokens=16))
    (answer,) = await on.client.complete(token_ids=PROMPT, max_tokens=3, seed=0)
    assert list(answer.token_ids) == expected(PROMPT, 3)
    assert len(on["d0"].prefills) == len(on["d0"].decodes) == 1
    assert not on["p0"].prefills
    # A long one is not.
    await on.client.complete(token_ids=[5] * 40, max_tokens=3)
    assert len(on["p0"].prefills) == 1
