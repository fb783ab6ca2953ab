"""A machine with other people's settings: dead proxies, another Ray, another cluster's token."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.client import AsyncClient
from router.events import Finished
from tests.e2e.conftest import cluster_spec
from tests.e2e.running import running

pytestmark = pytest.mark.ray

DEAD = "http://127.0.0.1:9"
OTHER_RAY = """
import sys, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20,
         log_to_driver=False, _temp_dir=sys.argv[1], _node_ip_address="127.0.0.1")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.readline()
sys.stdout.write(f"{len(ray.nodes())} node, {len(ray._private.state.jobs())} job\\n")
ray.shutdown()
"""


@pytest.fixture
def other_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    """Another Ray, without authentication, in a process of its own."""
    folder = tmp_path_factory.mktemp("r")
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_RAY, str(folder)],
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_others_settings_do_not_reach_us_nor_we_their_ray(
    other_ray: "subprocess.Popen[str]",
    tiny_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert other_ray.stdout is not None
    address = other_ray.stdout.readline().strip()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of-another-cluster-" * 3)
    settings = {
        **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"), DEAD),
        "HOME": str(tmp_path),
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": "/nonexistent",
        "RAY_grpc_enable_http_proxy": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    async def ask(addresses: tuple[str, ...]) -> int:
        async with AsyncClient(addresses) as client:
            events = [
                event async for event in client.generate("hello", max_tokens=5, ignore_eos=True)
            ]
        assert isinstance(events[-1], Finished)
        return events[-1].num_output_tokens

    with running(cluster_spec(tiny_dir)) as ours:
        assert ours.run(ask(ours.cluster.router_addresses)) == 5
    assert {name: os.environ[name] for name in settings} == settings  # given back
    said, _ = other_ray.communicate("\n", timeout=30.0)
    assert said == "1 node, 1 job\n"
