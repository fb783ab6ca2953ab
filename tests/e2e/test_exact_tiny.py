"""Law 1 on a real cluster: real Ray, real Valkey, real handoff, against Hugging Face generate()."""

from dataclasses import replace

import pytest

from tests.e2e.asking import ask_all, questions
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray


def test_tiny_32_at_once(
    tiny_pair: RunningCluster, tiny_oracle: Oracle, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = questions(32, vocab_size=512, prompt_tokens=range(1, 600), output_tokens=range(1, 64))
    answers = tiny_pair.run(ask_all(tiny_pair.cluster.router_addresses, asked))
    with capsys.disabled():
        print(f"\ntiny llama: {compare_all(tiny_oracle, answers)}")


def test_seeded_sampling_does_not_depend_on_the_batch(tiny_pair: RunningCluster) -> None:
    asked = [
        replace(question, temperature=0.9)
        for question in questions(
            16, vocab_size=512, prompt_tokens=range(1, 200), output_tokens=range(8, 40)
        )
    ]
    addresses = tiny_pair.cluster.router_addresses
    crowd = tiny_pair.run(ask_all(addresses, asked))
    alone = tiny_pair.run(ask_all(addresses, asked, at_once=1))
    assert [a.token_ids for a in crowd] == [a.token_ids for a in alone]
    greedy = [replace(question, temperature=0.0) for question in asked]
    assert [a.token_ids for a in tiny_pair.run(ask_all(addresses, greedy))] != [
        a.token_ids for a in crowd
    ]
