"""`baton state` against a real store: out, in, and refused."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.state import state
from registry.cluster_state import ClusterState
from registry.connect import connect
from registry.editions import Draft
from registry.embedded import EmbeddedValkey

runner = CliRunner()


@pytest.fixture
def url() -> Iterator[str]:
    server = EmbeddedValkey()
    asyncio.run(server.start())
    yield server.url
    asyncio.run(server.stop())


async def fill(url: str, cluster: str) -> None:
    registry = connect(url, cluster)
    term = await registry.lead("controller-a", "127.0.0.1:7001", term=None, ttl_s=5)
    await registry.put_deployment("Fünf\n", term=term)
    await registry.put_settings(Draft(text='log_level = "INFO"\n', author="a"))
    await registry.shared_key(bytes(range(32)))
    await registry.close()


async def stored(url: str, cluster: str) -> ClusterState:
    registry = connect(url, cluster)
    try:
        return await registry.state()
    finally:
        await registry.close()


def run(*arguments: str, text: str | None = None, status: int = 0) -> str:
    result = runner.invoke(state, list(arguments), input=text)
    assert result.exit_code == status, result.output
    return result.output


def test_out_and_in_again(url: str, tmp_path: Path) -> None:
    asyncio.run(fill(url, "baton"))
    saved, at = tmp_path / "state.json", ("--registry", url)
    saved.write_text("an older one, which anybody may read")
    saved.chmod(0o644)
    told = run("export", str(saved), *at)
    assert "keep it secret" in told
    assert saved.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    key = bytes(range(32)).hex()
    assert json.loads(saved.read_text(encoding="utf-8"))["shared_key"] == key
    assert "CLUSTER_NOT_EMPTY" in run("import", str(saved), *at, status=1)
    told = run("import", str(saved), *at, "--name", "other")
    assert "deployment yes, settings version 1, key yes, last term " in told
    assert asyncio.run(stored(url, "other")) == asyncio.run(stored(url, "baton"))
    assert key not in told
    # Over itself: the same, and the settings as one more edition.
    assert "state restored" in run("import", str(saved), *at, "--force")
    assert asyncio.run(stored(url, "baton")).settings_version == 2


def test_through_a_pipe(url: str) -> None:
    asyncio.run(fill(url, "baton"))
    text = run("export", "-", "--registry", url)
    run("import", "-", "--registry", url, "--name", "other", text=text)
    assert asyncio.run(stored(url, "other")) == asyncio.run(stored(url, "baton"))


def test_what_is_told_of_files_and_stores_that_do_not_do(tmp_path: Path) -> None:
    nowhere, missing = ("--registry", "redis://:canary@127.0.0.1:1"), tmp_path / "no" / "file"
    bad, binary = tmp_path / "bad", tmp_path / "binary"
    bad.write_text("{}")
    binary.write_bytes(b"\xff")
    cases = [
        (("import", str(missing), *nowhere), "FILE_UNUSABLE: cannot read"),
        (("import", str(binary), *nowhere), "not UTF-8"),
        (("import", str(bad), *nowhere), "INVALID_STATE_FILE: not a state file"),
        (("export", str(missing), *nowhere), "REGISTRY_UNAVAILABLE"),
        (("export", str(missing), "--registry", "http://canary"), "CONFIG_ERROR"),
    ]
    for arguments, told in cases:
        output = run(*arguments, status=1)
        assert told in output
        assert "canary" not in output


def test_an_export_that_cannot_be_written_leaves_nothing(url: str, tmp_path: Path) -> None:
    for target in (tmp_path / "no" / "file", tmp_path):
        assert "FILE_UNUSABLE: cannot write" in run(
            "export", str(target), "--registry", url, status=1
        )
    assert list(tmp_path.iterdir()) == []


def test_help_says_that_the_file_is_a_secret() -> None:
    shown = " ".join(run("export", "--help").replace("│", " ").split())
    assert "FILE is a secret" in shown
    assert "mode 0600" in shown
