"""What requests may ask for, through a whole cluster: choices, log-probabilities, grammars."""

import json
from typing import Any

import pytest

from core.errors import InvalidRequest
from router.client import AsyncClient, Completion
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

PROMPT = [3 + (7 * i) % 500 for i in range(200)]
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": [1, 2, 3]}, "is_red": {"type": "boolean"}},
    "required": ["size", "is_red"],
    "additionalProperties": False,
}


def complete(running: RunningCluster, **options: Any) -> list[Completion]:
    async def ask() -> list[Completion]:
        async with AsyncClient(running.cluster.router_addresses) as client:
            return await client.complete(temperature=0.0, timeout_s=120.0, **options)

    return running.run(ask())


def num_hits(answers: list[Completion]) -> list[int]:
    return [answer.finished.timing.prefill.num_hit_tokens for answer in answers]


def test_choices_compute_their_prompt_once(tiny_pair: RunningCluster) -> None:
    answers = complete(tiny_pair, token_ids=PROMPT, n=4, max_tokens=8, ignore_eos=True)
    assert len({answer.token_ids for answer in answers}) == 1
    assert sorted(num_hits(answers)) == [0, 192, 192, 192]


def test_a_prompt_that_was_there_before_is_a_hit_for_its_tenant(tiny_pair: RunningCluster) -> None:
    prompt = PROMPT[::-1]
    asked = {"token_ids": prompt, "max_tokens": 8, "ignore_eos": True}
    first = complete(tiny_pair, **asked)
    again = complete(tiny_pair, **asked)
    stranger = complete(tiny_pair, **asked, tenant="stranger")
    assert [num_hits(answers) for answers in (first, again, stranger)] == [[0], [192], [0]]
    assert first[0].token_ids == again[0].token_ids == stranger[0].token_ids


def test_log_probabilities_come_with_every_token(tiny_pair: RunningCluster) -> None:
    (answer,) = complete(tiny_pair, token_ids=PROMPT, max_tokens=12, ignore_eos=True, logprobs=5)
    assert len(answer.logprobs) == len(answer.token_ids) == 12
    for token_id, logprobs in zip(answer.token_ids, answer.logprobs, strict=True):
        assert logprobs.top[0] == (token_id, logprobs.logprob), "greedy: the likeliest"
        assert len(logprobs.top) == 5


def test_an_answer_matches_its_schema(tiny_pair: RunningCluster) -> None:
    (answer,) = complete(tiny_pair, token_ids=PROMPT, max_tokens=200, json_schema=SCHEMA)
    value = json.loads(answer.text)
    assert set(value) == {"size", "is_red"}
    assert value["size"] in (1, 2, 3)
    with pytest.raises(InvalidRequest, match="grammar"):
        complete(tiny_pair, token_ids=PROMPT, json_schema='{"type": 5}')
    (again,) = complete(tiny_pair, token_ids=PROMPT, max_tokens=200, json_schema=SCHEMA)
    assert again.text == answer.text
