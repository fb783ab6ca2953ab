"""k6, promtool and schemathesis: what operators point at a server."""

import json
import re
import urllib.request
from pathlib import Path

import pytest

from tests.clients.conftest import Run, http_address
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

SCRIPT = Path(__file__).parent / "load.js"
MAX_EXAMPLES = 10
"""Of schemathesis, per operation, beside those that it works out from the bounds."""
MIN_CASES = 500


def test_k6_sees_no_failure(site: RunningCluster, client: Run) -> None:
    url = f"BASE_URL=http://{http_address(site)}"
    client("k6", "run", "--quiet", "--no-usage-report", "-e", url, str(SCRIPT))


def test_promtool_likes_the_metrics(site: RunningCluster, client: Run) -> None:
    body = json.dumps({"prompt": "hello", "max_tokens": 3}).encode()
    url = f"http://{http_address(site)}"
    with urllib.request.urlopen(f"{url}/v1/completions", body, timeout=60.0) as reply:
        assert reply.status == 200
    with urllib.request.urlopen(f"{url}/metrics", timeout=60.0) as reply:
        text = reply.read().decode()
    assert "baton_pool_utilisation_ratio" in text
    assert "baton_pool_wanted_instances" in text
    assert client("promtool", "check", "metrics", stdin=text).strip() == ""


def test_schemathesis_finds_no_server_error(site: RunningCluster, client: Run) -> None:
    output = client(
        "st",
        "run",
        f"http://{http_address(site)}/openapi.json",
        "--checks=not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance",
        "--phases=coverage,fuzzing",
        f"--max-examples={MAX_EXAMPLES}",
        "--seed=1",
        "--no-color",
        "--request-timeout=60",
    )
    [cases] = re.findall(r"(\d+) generated, (\d+) passed", output)
    assert cases[0] == cases[1], output[-3000:]
    assert int(cases[0]) > MIN_CASES
