"""`baton up` and `baton down` with what they refuse before anything is started."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from cli.main import app
from cli.running import ClusterNote, write_note
from deploy.tiny_model import write_tiny_llama
from registry.embedded import EmbeddedValkey
from tests.e2e.running import OwnLoop

run = CliRunner()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


BAD_PLANS = [
    ("not TOML", "[prefill", "plan.toml: "),
    ("an unknown key", "prefil = 1", "unknown key 'prefil'"),
    ("nobody decodes", "[decode]\nreplicas = 0", "needs prefill and decode instances, or mixed"),
    ("no such type", '[decode]\ninstance_type = "big"', "no instance_types.big in the plan"),
    ("unequal pairs", 'affinity = "paired"\n[decode]\nreplicas = 2', "as many prefill as decode"),
    ("negative drain", "drain_s = -1.0", "drain_s must be 0 to"),
    ("a target of none", "[online]\nattainment = 1.0", "attainment must be between 0 and 1"),
]


@pytest.mark.parametrize(
    ("text", "said"), [case[1:] for case in BAD_PLANS], ids=[case[0] for case in BAD_PLANS]
)
def test_a_plan_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    result = run.invoke(app, ["up", str(plan)])
    assert result.exit_code == 2
    assert said in result.stderr


def test_no_such_file(tmp_path: Path) -> None:
    result = run.invoke(app, ["up", str(tmp_path / "plan.toml")])
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_no_room_in_memory(tmp_path: Path) -> None:
    """Told before Ray is started."""
    plan, model = tmp_path / "plan.toml", write_tiny_llama(tmp_path / "tiny")
    plan.write_text("[decode]\nreplicas = 100000\n")
    result = run.invoke(app, ["up", str(plan), "--model", str(model)])
    assert result.exit_code == 1
    assert "GB of memory are free" in result.stderr
    assert not (tmp_path / "state" / "baton" / "clusters").exists()


def test_down_without_a_cluster() -> None:
    result = run.invoke(app, ["down"])
    assert result.exit_code == 1
    assert "no running cluster" in result.stderr


def test_down_leaves_what_serve_runs_to_it() -> None:
    write_note(ClusterNote(name="mine", routers=("127.0.0.1:1",), http=()))
    result = run.invoke(app, ["down"])
    assert result.exit_code == 1
    assert "Ctrl-C there ends it" in result.stderr


def test_a_store_that_may_lose_keys(tmp_path: Path) -> None:
    """Told before Ray is started."""
    plan, model = tmp_path / "plan.toml", write_tiny_llama(tmp_path / "tiny")
    plan.write_text("")
    with evicting_store() as url:
        result = run.invoke(app, ["up", str(plan), "--model", str(model), "--registry", url])
    assert result.exit_code == 1
    assert "set maxmemory-policy noeviction" in result.stderr
    assert not (tmp_path / "state" / "baton" / "clusters").exists()


@contextmanager
def evicting_store() -> Iterator[str]:
    """A real one, on a loop of its own thread."""

    async def evicting() -> AsyncIterator[str]:
        async with EmbeddedValkey() as server, Redis.from_url(server.url, protocol=2) as client:
            await client.config_set("maxmemory-policy", "allkeys-lru")
            yield server.url

    with OwnLoop(asynccontextmanager(evicting)()) as loop:
        yield loop.value
