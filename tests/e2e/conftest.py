"""Real clusters: one per module, since a process can be connected to one Ray at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.config import Config
from core.plan import Plan, PoolPlan
from deploy.cluster import ClusterSpec
from deploy.default_model import fetch_default_model
from deploy.tiny_model import write_tiny_llama
from tests.e2e.books import check_books
from tests.e2e.oracle import Oracle
from tests.e2e.running import RunningCluster, running

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of these clusters is kept where the user's are."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama", layers=3)


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    return fetch_default_model()


@pytest.fixture(scope="module")
def tiny_oracle(tiny_dir: Path) -> Oracle:
    return Oracle(tiny_dir)


@pytest.fixture(scope="module")
def smollm2_oracle(smollm2_dir: Path) -> Oracle:
    return Oracle(smollm2_dir)


def cluster_spec(model_dir: Path, *, num_prefill: int = 1, num_decode: int = 1) -> ClusterSpec:
    """Few blocks, so that a leak is felt at once."""
    config = Config()
    config = replace(config, engine=replace(config.engine, num_blocks=512))
    plan = Plan(prefill=PoolPlan(replicas=num_prefill), decode=PoolPlan(replicas=num_decode))
    return ClusterSpec(plan=plan, model_dir=model_dir, config=config, name="e2e")


@pytest.fixture(scope="module")
def tiny_pair(tiny_dir: Path) -> Iterator[RunningCluster]:
    """One prefill, one decode, the tiny model."""
    with running(cluster_spec(tiny_dir)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tiny_pools(tiny_dir: Path) -> Iterator[RunningCluster]:
    """Two prefill, two decode, the tiny model, in steps so small that there is time to die."""
    spec = cluster_spec(tiny_dir, num_prefill=2, num_decode=2)
    worker = replace(spec.config.worker, prefill_step_tokens=4, mixed_step_tokens=4)
    with running(replace(spec, config=replace(spec.config, worker=worker))) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def tiny_mixed(tiny_dir: Path) -> Iterator[RunningCluster]:
    """One mixed instance with 64 blocks, the tiny model."""
    none = PoolPlan(replicas=0)
    spec = replace(
        cluster_spec(tiny_dir), plan=Plan(prefill=none, decode=none, mixed=PoolPlan(replicas=1))
    )
    engine = replace(spec.config.engine, num_blocks=64)
    with running(replace(spec, config=replace(spec.config, engine=engine))) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def smollm2_pair(smollm2_dir: Path) -> Iterator[RunningCluster]:
    """One prefill, one decode, the default model."""
    with running(cluster_spec(smollm2_dir)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Law 2 after every test, on every instance of every cluster it used."""
    yield
    for name in request.fixturenames:
        value = request.node.funcargs.get(name)
        if isinstance(value, RunningCluster):
            value.run(check_books(value.cluster))
