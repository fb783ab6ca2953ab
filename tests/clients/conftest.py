"""One real cluster for all clients, and the clients' own environment."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.plan import Plan, PoolPlan
from deploy.tiny_model import write_tiny_llama
from tests.e2e.books import check_books
from tests.e2e.conftest import cluster_spec
from tests.e2e.running import RunningCluster, running
from tools import clients

CLIENT_TIMEOUT_S = 240.0
ALL_ARE_HERE = platform.machine() == "x86_64" and shutil.which("apt-get") is not None
"""Some clients are binaries for Linux on x86-64, one of them out of a Debian package."""


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two prefill, two decode, the tiny model, one router with all its doors."""
    model_dir = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama", layers=3)
    # Who names no limit would go on to the context's end: some clients never name one.
    (model_dir / "generation_config.json").write_text('{"max_new_tokens": 16}')
    spec = cluster_spec(model_dir)
    plan = Plan(prefill=PoolPlan(replicas=2), decode=PoolPlan(replicas=2))
    with running(replace(spec, plan=plan, name="clients")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def bin_dir() -> Path:
    """Where the real clients' programs are."""
    return clients.bin_dir()


Run = Callable[..., str]


@pytest.fixture
def client(bin_dir: Path, tmp_path: Path) -> Run:
    """Runs one of them to its end; its output, all of it."""

    def run(program: str, *arguments: str, stdin: str = "", status: int | None = 0) -> str:
        path = shutil.which(program, path=f"{bin_dir}{os.pathsep}{os.defpath}")
        if path is None and not ALL_ARE_HERE:
            pytest.skip(f"{program} is not packaged for this machine")
        assert path is not None, f"no {program} in {bin_dir}"
        done = subprocess.run(
            [path, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            cwd=tmp_path,
            check=False,
        )
        output = done.stdout + done.stderr
        assert status is None or done.returncode == status, output[-4000:]
        return output

    return run


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Law 2 after every test, on every instance."""
    yield
    found = request.node.funcargs.get("site")
    if isinstance(found, RunningCluster):
        found.run(check_books(found.cluster))


def grpc_address(site: RunningCluster) -> str:
    return site.cluster.router_addresses[0]


def http_address(site: RunningCluster) -> str:
    return site.cluster.http_addresses[0]
