"""What was recorded plays as the host itself."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from deploy.inventory import record
from deploy.inventory.host import read_inventory
from deploy.inventory.nvml import NvmlFailed
from deploy.inventory.recording import Recorder, plain
from tests.deploy.inventory.described import (
    DescribedNvml,
    bridged_host,
    h100_host,
    l40s_host,
    laptop,
)
from tests.deploy.inventory.player import Player


@pytest.mark.parametrize("described", [h100_host, l40s_host, bridged_host, laptop, DescribedNvml])
def test_a_recording_plays(described: Callable[[], DescribedNvml], tmp_path: Path) -> None:
    recorder = Recorder(described())
    found = read_inventory(recorder, tmp_path)
    recorder.write(tmp_path / "nvml.json", about="a test")
    player = Player(tmp_path / "nvml.json")
    assert player.about == "a test"
    assert read_inventory(player, tmp_path) == found


def test_an_error_is_recorded_too(tmp_path: Path) -> None:
    nvml = l40s_host()
    nvml.lost = 1
    recorder = Recorder(nvml)
    with pytest.raises(NvmlFailed):
        read_inventory(recorder, tmp_path)
    recorder.write(tmp_path / "nvml.json", about="")
    with pytest.raises(NvmlFailed, match="GPU is lost"):
        read_inventory(Player(tmp_path / "nvml.json"), tmp_path)


PLAIN = [
    # id            answer                                           plain
    ("nothing", None, None),
    ("text of C", b"GPU", "GPU"),
    ("tuple", (9, 0), [9, 0]),
    ("array", (ctypes.c_uint * 2)(1, 2), [1, 2]),
    (
        "structure",
        pynvml.c_nvmlMemory_t(total=3, free=2, used=1),
        {"total": 3, "free": 2, "used": 1},
    ),
]


@pytest.mark.parametrize(("answer", "want"), [c[1:] for c in PLAIN], ids=[c[0] for c in PLAIN])
def test_plain(answer: object, want: object) -> None:
    assert plain(answer) == want


def test_the_command_writes_what_this_host_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "load_nvml", l40s_host)
    path = tmp_path / "nvml.json"
    assert record.main([str(path)]) == 0
    assert "driver 580" in Player(path).about
    assert len(read_inventory(Player(path), tmp_path).gpus) == 2


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_the_command_needs_a_file(arguments: list[str]) -> None:
    assert record.main(arguments) == 2


def test_the_command_needs_pynvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "load_nvml", lambda: None)
    assert record.main([str(tmp_path / "nvml.json")]) == 1
