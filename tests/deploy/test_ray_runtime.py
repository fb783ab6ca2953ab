"""What a private Ray is told, and where it keeps its objects; Ray itself is not started."""

import os
from pathlib import Path

import pytest

from deploy import ray_runtime
from deploy.ray_runtime import object_store_folder, ray_environment, ray_told


def test_another_cluster_in_the_shell_is_not_listened_to() -> None:
    outer = {
        "PATH": "/bin",
        "RAY_ADDRESS": "10.0.0.1:6379",
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "theirs",
        "RAY_AUTH_TOKEN_PATH": "/nonexistent/auth_token",
        "RAY_grpc_enable_http_proxy": "1",
        "RAY_TMPDIR": "/nonexistent",
    }
    changes = ray_environment(outer, "ours")
    unset = {name for name, value in changes.items() if value is None}
    assert unset == {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"}
    assert (changes["RAY_AUTH_MODE"], changes["RAY_grpc_enable_http_proxy"]) == ("token", "0")
    assert changes["RAY_AUTH_TOKEN"] == "ours"
    assert "PATH" not in changes


def test_objects_lie_elsewhere_when_shared_memory_is_small_or_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shm"
    assert object_store_folder(tmp_path, shared) == tmp_path
    shared.mkdir()
    monkeypatch.setattr(ray_runtime, "OBJECT_STORE_BYTES", 1)
    assert object_store_folder(tmp_path, shared) == shared
    monkeypatch.setattr(ray_runtime, "OBJECT_STORE_BYTES", 1 << 62)
    assert object_store_folder(tmp_path, shared) == tmp_path


def test_the_environment_is_afterwards_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = dict(os.environ)
    with ray_told({"RAY_ADDRESS": None, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ours"}):
        assert "RAY_ADDRESS" not in os.environ
        assert os.environ["RAY_AUTH_TOKEN"] == "ours"
        # Ray itself sets some at `init`.
        os.environ["RAY_AUTH_MODE"] = os.environ["RAY_ADDED"] = "by Ray"
    assert dict(os.environ) == before
