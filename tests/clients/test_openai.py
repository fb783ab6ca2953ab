"""The openai package: completions, chats, streams, errors, many at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Run, grpc_address, http_address
from tests.clients.doors import by_grpc
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

SESSION = Path(__file__).parent / "openai_session.py"


def test_session(site: RunningCluster, client: Run) -> None:
    url = f"http://{http_address(site)}/v1"
    seen = json.loads(client("python", str(SESSION), url).splitlines()[-1])
    assert seen["retrieved"] == seen["model"] == "tiny-llama"
    _check_completions(site, seen)
    _check_chats(seen)
    assert seen["bad"] == ["BadRequestError", 400, "temperature", "invalid_request"]
    assert seen["missing"] == ["NotFoundError", 404, None, "unknown_model"]
    assert seen["tools"] == ["BadRequestError", 400, None, "unsupported"]
    assert seen["crowd"] == 1


def _check_completions(site: RunningCluster, seen: dict[str, Any]) -> None:
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 42}
    own = site.run(by_grpc(grpc_address(site), [5, 6, 7, 8], options))
    assert tuple(seen["token_ids"]) == own.token_ids
    assert seen["whole"][0] == seen["streamed"] == own.texts[0]
    assert len(seen["whole"]) == 2
    assert len(seen["logprobs"]["token_logprobs"]) == own.num_output_tokens
    assert seen["stream_usage"]["completion_tokens"] == own.num_output_tokens
    assert seen["usage"]["prompt_tokens"] == 4


def _check_chats(seen: dict[str, Any]) -> None:
    assert seen["chat"] == seen["chat_streamed"] == seen["chat_helped"]
    assert seen["chat_logprobs"] > 0
    assert seen["finish"] in ("stop", "length")
    text, reason = seen["shaped"]
    if reason == "stop":
        assert isinstance(json.loads(text)["a"], int)
    assert seen["request_id"]
