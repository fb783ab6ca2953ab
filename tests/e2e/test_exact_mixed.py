"""Law 1 on one mixed instance whose answers push each other out of memory."""

import pytest

from tests.e2e.asking import ask_all, questions
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray


def test_a_mixed_instance_with_too_little_memory_is_exact(
    tiny_mixed: RunningCluster, tiny_oracle: Oracle, capsys: pytest.CaptureFixture[str]
) -> None:
    """32 answers of up to 40 blocks in 64: not all of them fit at once."""
    asked = questions(32, vocab_size=512, prompt_tokens=range(1, 500), output_tokens=range(16, 128))
    answers = tiny_mixed.run(ask_all(tiny_mixed.cluster.router_addresses, asked))
    with capsys.disabled():
        print(f"\ntiny llama, one mixed instance: {compare_all(tiny_oracle, answers)}")
