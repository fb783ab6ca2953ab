"""Law 1 on a real cluster with the real default model."""

import pytest

from tests.e2e.asking import ask_all, questions
from tests.e2e.oracle import Oracle, compare_all
from tests.e2e.running import RunningCluster

pytestmark = [pytest.mark.ray, pytest.mark.model]


@pytest.mark.timeout(540)
def test_smollm2_32_at_once(
    smollm2_pair: RunningCluster, smollm2_oracle: Oracle, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = questions(
        32, vocab_size=40_000, prompt_tokens=range(4, 200), output_tokens=range(2, 24)
    )
    answers = smollm2_pair.run(ask_all(smollm2_pair.cluster.router_addresses, asked))
    with capsys.disabled():
        print(f"\nSmolLM2: {compare_all(smollm2_oracle, answers)}")
