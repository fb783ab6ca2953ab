"""A wrong checkpoint is one clear error before any port opens, whoever is asked to serve it."""

import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import ModelError
from core.ids import InstanceId
from core.member import Role
from core.parallel import ParallelLayout
from core.plan import Plan
from deploy import check_model as module
from deploy import cluster
from deploy.check_model import check_model, state_digest
from deploy.cluster import ClusterSpec, start_cluster
from deploy.instance import InstanceSpec
from deploy.tiny_model import write_tiny_llama
from tests.engine.damages import drop_tensor, edit_json, truncate

DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (drop_tensor, "missing tensors: model.layers.1.mlp.up_proj.weight [128, 64]"),
    (truncate, "damaged or truncated"),
]
"""Two, for each costs a process; all of them are in tests/engine/test_checkpoint.py."""
NAMES = [damage.__name__ for damage, _ in DAMAGES]
WAIT_S = 120.0
"""For a process that imports torch."""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No stamp of this user's is seen or made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "baton"


def answer(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """What the check's process does instead."""
    monkeypatch.setattr(module, "_command", lambda *_: ("/bin/sh", "-c", script))


def stamps_in(cache: Path) -> list[Path]:
    return list((cache / "checked").iterdir())


def never(*_: object, **__: object) -> None:
    raise AssertionError("started before the model was checked")


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=NAMES)
async def test_a_cluster_of_it_starts_nothing(
    tiny: Path, damage: Callable[[Path], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(tiny)
    for name in ("EmbeddedValkey", "private_ray"):
        monkeypatch.setattr(cluster, name, never)
    begun: list[str] = []
    with pytest.raises(ModelError) as caught:
        async with start_cluster(ClusterSpec(plan=Plan(), model_dir=tiny), begun.append):
            never()
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert begun == []


async def test_an_instance_of_it_ends_without_an_address(tiny: Path) -> None:
    drop_tensor(tiny)
    spec = InstanceSpec(instance_id=InstanceId("decode-0"), role=Role.DECODE, model_dir=tiny)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.instance", "--spec-json", spec.to_json()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(WAIT_S):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out) == (1, b"")
    (line,) = errors.decode().splitlines()
    assert "missing tensors: model.layers.1.mlp.up_proj.weight" in line


async def test_what_passed_is_not_looked_at_again(
    tiny: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check_model(tiny)
    assert [path.name for path in stamps_in(own_cache)] == [state_digest(tiny)]
    monkeypatch.setattr(module, "_ask", never)
    await check_model(tiny)
    edit_json(tiny / "config.json", num_hidden_layers=3)
    with pytest.raises(AssertionError, match="started"):
        await check_model(tiny)


async def test_the_oldest_stamps_go(
    tiny: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "echo '{}'")
    monkeypatch.setattr(module, "MAX_STAMPS", 2)
    for num_layers in (3, 4, 5):
        edit_json(tiny / "config.json", num_hidden_layers=num_layers)
        await check_model(tiny)
    assert len(stamps_in(own_cache)) == 2
    assert state_digest(tiny) in [path.name for path in stamps_in(own_cache)]


CHANGES: list[Callable[[Path], object]] = [
    lambda tiny: (tiny / "model.safetensors").touch(),
    lambda tiny: (tiny / "model.safetensors.index.json").write_text("{}"),
    lambda tiny: (tiny / "config.json").unlink(),
    lambda tiny: (tiny / "link.safetensors").symlink_to("nothing"),
    lambda tiny: shutil.copy(tiny / "model.safetensors", tiny / "more.safetensors"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_seen(tiny: Path, change: Callable[[Path], object]) -> None:
    before = state_digest(tiny)
    assert state_digest(tiny) == before
    change(tiny)
    assert state_digest(tiny) != before


def test_two_folders_are_two(tiny: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny, tmp_path / "other")
    assert state_digest(other) != state_digest(tiny)


DEAD_PROCESSES = [
    # id               script                                     names
    ("no word", "exit 3", "ended with status 3: no message"),
    ("its last line", "echo first >&2; echo 'No module named x' >&2; exit 1", "1: No module named"),
    ("killed", "kill -9 $$", "ended with status -9"),
]


@pytest.mark.parametrize(
    ("script", "message"), [c[1:] for c in DEAD_PROCESSES], ids=[c[0] for c in DEAD_PROCESSES]
)
async def test_a_check_that_dies_is_told(
    tiny: Path, script: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, script)
    with pytest.raises(ModelError, match=f"{tiny}: its check .*{message}"):
        await check_model(tiny)


async def test_a_check_that_hangs_is_ended(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "exec sleep 600")
    monkeypatch.setattr(module, "CHECK_TIMEOUT_S", 0.05)
    with pytest.raises(ModelError, match="its check did not end in"):
        await check_model(tiny)


def test_a_cache_that_cannot_be_written_costs_only_time(
    tiny: Path,
    own_cache: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_cache.write_text("a file where the folder should be")
    answer(monkeypatch, "echo '{}'")
    asyncio.run(check_model(tiny))
    assert "cannot note that a model was checked" in caplog.text


async def test_unused_tensors_are_told(
    tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, """echo '{"ignored_tensors": ["a", "b", "c", "d", "e", "f"]}'""")
    await check_model(tiny)
    assert "6 tensors unused: a, b, c, d, e" in caplog.text


async def test_layouts_are_checked_each(tiny: Path, own_cache: Path) -> None:
    """A folder that passed on one rank has not passed on several."""
    await check_model(tiny)
    await check_model(tiny, layouts=[ParallelLayout(tp=2, pp=2)])
    assert len(stamps_in(own_cache)) == 2
    with pytest.raises(ModelError, match="pp = 9: the model has 2 layers"):
        await check_model(tiny, layouts=[ParallelLayout(pp=9)])
