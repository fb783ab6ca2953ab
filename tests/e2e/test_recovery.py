"""Any single instance dies in the middle of an answer: the right tokens, only later."""

import os
import signal
from collections.abc import Callable

import pytest

from core.errors import BatonError
from deploy.cluster import Cluster
from router.client import AsyncClient
from router.events import Delta, Finished
from tests.e2e.asking import Answer, Question
from tests.e2e.books import books_of
from tests.e2e.oracle import Oracle
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

MAX_TOKENS = 200


def _question(salt: int) -> Question:
    """800 tokens that no other test asks: a cached prompt would be read before anything dies."""
    prompt = (3 + salt, *(3 + (i * 7) % 500 for i in range(799)))
    return Question(prompt=prompt, max_tokens=MAX_TOKENS)


async def _ask_and_kill(
    running: RunningCluster,
    question: Question,
    victim: Callable[[str], bool],
    after_tokens: int,
    *,
    everybody: bool = False,
    timeout_s: float = 120.0,
) -> Answer:
    """SIGKILL the busy victim (or everybody `victim` names) once so many tokens have arrived."""
    cluster, token_ids, killed = running.cluster, list[int](), False
    pids = {name: await cluster.pid(name) for name in cluster.actors if victim(name)}
    async with AsyncClient(cluster.router_addresses) as client:
        async for event in client.generate(
            token_ids=question.prompt,
            max_tokens=question.max_tokens,
            temperature=0.0,
            ignore_eos=True,
            timeout_s=timeout_s,
        ):
            if isinstance(event, Delta):
                assert event.position == len(token_ids)
                token_ids.extend(event.token_ids)
            if isinstance(event, Finished):
                assert killed, "it was over before anything was killed"
                return Answer(question=question, token_ids=tuple(token_ids), finished=event)
            if not killed and len(token_ids) >= after_tokens:
                killed = True
                for name in await _victims(running, victim, everybody=everybody):
                    os.kill(pids[name], signal.SIGKILL)
    raise AssertionError("the stream ended without Finished")


async def _victims(
    running: RunningCluster, victim: Callable[[str], bool], *, everybody: bool
) -> list[str]:
    cluster = running.cluster
    names = [name for name in cluster.actors if victim(name)]
    return names if everybody else [name for name in names if await _is_busy(cluster, name)]


async def _is_busy(cluster: Cluster, name: str) -> bool:
    books = (await books_of(await cluster.address(name))).integrity
    return bool(books.num_prefills + books.num_decodes + books.num_incoming)


def _check(oracle: Oracle, answer: Answer) -> None:
    assert answer.finished.timing.num_attempts > 1
    assert oracle.compare(answer.question.prompt, answer.token_ids).problem is None


def _decode(name: str) -> bool:
    return name.startswith("decode")


def _instance(name: str) -> bool:
    return not name.startswith("router")


def _prefill(name: str) -> bool:
    return name.startswith("prefill")


CASES = [
    # id                            salt    victim    after this many tokens
    ("prefill while it computes", 0, _prefill, 0),
    ("decode while it waits for KV", 1, _decode, 0),
    ("decode after the first tokens", 2, _decode, 2),
    ("decode in the middle", 3, _decode, 60),
]


@pytest.mark.parametrize(
    ("salt", "victim", "after"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_one_of_two_dies(
    tiny_pools: RunningCluster,
    tiny_oracle: Oracle,
    salt: int,
    victim: Callable[[str], bool],
    after: int,
) -> None:
    asked = _ask_and_kill(tiny_pools, _question(salt), victim, after)
    _check(tiny_oracle, tiny_pools.run(asked))


@pytest.mark.parametrize(
    ("salt", "victim", "after"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_the_whole_pool_dies(
    tiny_pools: RunningCluster,
    tiny_oracle: Oracle,
    salt: int,
    victim: Callable[[str], bool],
    after: int,
) -> None:
    """What is left does both phases until Ray has started the others again."""
    asked = _ask_and_kill(tiny_pools, _question(10 + salt), victim, after, everybody=True)
    _check(tiny_oracle, tiny_pools.run(asked))


def test_everything_dies(tiny_pools: RunningCluster, tiny_oracle: Oracle) -> None:
    """No instance is left: the right tokens after Ray's restart."""
    asked = _ask_and_kill(tiny_pools, _question(20), _instance, 20, everybody=True)
    _check(tiny_oracle, tiny_pools.run(asked))


def test_everything_dies_and_the_deadline_comes_first(tiny_pools: RunningCluster) -> None:
    """A typed error by the deadline, never a hang."""
    with pytest.raises(BatonError) as caught:
        tiny_pools.run(
            _ask_and_kill(tiny_pools, _question(21), _instance, 20, everybody=True, timeout_s=1.0)
        )
    assert caught.value.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
