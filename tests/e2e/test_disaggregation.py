"""Proof that two processes share the work: who computed what, and what moved between them."""

import pytest

from core.model_spec import ModelSpec
from router.client import AsyncClient
from tests.e2e.asking import Question, ask, ask_all, questions
from tests.e2e.books import books_of
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

LONG_PROMPT_TOKENS = 1500


@pytest.fixture(scope="module")
def bytes_per_token() -> int:
    """K and V, 3 layers, 2 heads of 16 elements, float32: the tiny model."""
    spec = ModelSpec(
        name="tiny",
        architecture="llama",
        num_layers=3,
        num_query_heads=4,
        num_kv_heads=2,
        head_dim=16,
        hidden_size=64,
        vocab_size=512,
        max_context_tokens=2048,
        eos_token_ids=(2,),
        dtype="float32",
        weights_digest="",
    )
    return spec.kv_bytes_per_token


def test_prefill_and_decode_are_different_processes(tiny_pair: RunningCluster) -> None:
    cluster = tiny_pair.cluster
    pids = {name: tiny_pair.run(cluster.pid(name)) for name in cluster.actors}
    assert len(set(pids.values())) == len(pids) == 3
    for name in ("prefill-0", "decode-0"):
        books = tiny_pair.run(books_of(cluster.addresses[name]))
        assert books.integrity.pid == pids[name]


def test_each_phase_ran_where_it_belongs(tiny_pair: RunningCluster) -> None:
    async def steps() -> dict[str, int]:
        return {
            name: (await books_of(tiny_pair.cluster.addresses[name])).integrity.num_steps
            for name in ("prefill-0", "decode-0")
        }

    before = tiny_pair.run(steps())
    asked = Question(prompt=tuple(range(3, 103)), max_tokens=20)
    [answer] = tiny_pair.run(ask_all(tiny_pair.cluster.router_addresses, [asked]))
    after = tiny_pair.run(steps())
    assert after["prefill-0"] - before["prefill-0"] == 1
    assert after["decode-0"] - before["decode-0"] == 19
    timing = answer.finished.timing
    assert (timing.prefill_instance_id, timing.decode_instance_id) == ("prefill-0", "decode-0")


def test_bytes_moved_are_tokens_times_bytes_per_token(
    tiny_pair: RunningCluster, bytes_per_token: int
) -> None:
    asked = questions(8, vocab_size=512, prompt_tokens=range(1, 900), output_tokens=range(2, 6))
    for answer in tiny_pair.run(ask_all(tiny_pair.cluster.router_addresses, asked)):
        handoff = answer.finished.timing.handoff
        assert handoff.num_kv_tokens == len(answer.question.prompt)
        num_sent = handoff.num_kv_tokens - handoff.num_reused_tokens
        assert handoff.num_kv_bytes == num_sent * bytes_per_token
        assert handoff.carrier == "shm"


def test_one_token_never_meets_decode(tiny_pair: RunningCluster) -> None:
    async def one() -> tuple[str, int]:
        async with AsyncClient(tiny_pair.cluster.router_addresses) as client:
            answer = await ask(client, Question(prompt=(5, 6, 7), max_tokens=1))
        timing = answer.finished.timing
        return timing.decode_instance_id, timing.handoff.num_kv_bytes

    assert tiny_pair.run(one()) == ("", 0)


def test_first_segment_leaves_while_prefill_computes(tiny_pair: RunningCluster) -> None:
    asked = Question(prompt=tuple(3 + i % 500 for i in range(LONG_PROMPT_TOKENS)), max_tokens=2)
    [answer] = tiny_pair.run(ask_all(tiny_pair.cluster.router_addresses, [asked]))
    assert answer.finished.timing.handoff.first_segment_lead_s > 0
