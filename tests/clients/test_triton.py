"""tritonclient[grpc]: metadata, readiness, whole and streamed inference, cancel."""

import json
from pathlib import Path

import pytest

from tests.clients.conftest import Run, grpc_address
from tests.clients.doors import by_grpc
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

SESSION = Path(__file__).parent / "triton_session.py"


def test_session(site: RunningCluster, client: Run) -> None:
    address = grpc_address(site)
    seen = json.loads(client("python", str(SESSION), address, "tiny-llama").splitlines()[-1])
    looks = [seen[name] for name in ("live", "ready", "model_ready", "other_ready", "server")]
    assert looks == [True, True, True, False, "baton"]
    assert "text_input" in seen["inputs"]
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 42}
    own = site.run(by_grpc(address, [5, 6, 7, 8], options))
    assert (seen["text"], tuple(seen["token_ids"])) == (own.texts[0], own.token_ids)
    assert seen["streamed"] == [own.texts[0], list(own.token_ids)]
    assert seen["error"] == "StatusCode.INVALID_ARGUMENT"
    assert seen["cancelled"] == "StatusCode.CANCELLED"
