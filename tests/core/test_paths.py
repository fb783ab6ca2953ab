"""Where Baton's folders are, per platform."""

from pathlib import Path

import pytest

from core.paths import cache_dir, state_dir

HOME = Path("/users/me")
CACHES = [
    # id, environment, platform, want
    ("Linux", {}, "linux", "/users/me/.cache/baton"),
    ("macOS", {}, "darwin", "/users/me/Library/Caches/baton"),
    ("XDG", {"XDG_CACHE_HOME": "/big"}, "linux", "/big/baton"),
    ("XDG on macOS", {"XDG_CACHE_HOME": "/big"}, "darwin", "/big/baton"),
    ("XDG empty", {"XDG_CACHE_HOME": ""}, "linux", "/users/me/.cache/baton"),
    ("XDG relative", {"XDG_CACHE_HOME": "big"}, "linux", "/users/me/.cache/baton"),
    ("XDG's other", {"XDG_STATE_HOME": "/big"}, "linux", "/users/me/.cache/baton"),
]
STATES = [
    ("Linux", {}, "linux", "/users/me/.local/state/baton"),
    ("macOS", {}, "darwin", "/users/me/Library/Application Support/baton"),
    ("XDG", {"XDG_STATE_HOME": "/kept"}, "linux", "/kept/baton"),
    ("XDG on macOS", {"XDG_STATE_HOME": "/kept"}, "darwin", "/kept/baton"),
    ("XDG empty", {"XDG_STATE_HOME": ""}, "linux", "/users/me/.local/state/baton"),
    ("XDG relative", {"XDG_STATE_HOME": "kept"}, "linux", "/users/me/.local/state/baton"),
    ("XDG's other", {"XDG_CACHE_HOME": "/big"}, "linux", "/users/me/.local/state/baton"),
]


@pytest.mark.parametrize(
    ("environ", "platform", "want"), [c[1:] for c in CACHES], ids=[c[0] for c in CACHES]
)
def test_cache_dir(environ: dict[str, str], platform: str, want: str) -> None:
    assert cache_dir(environ, platform, HOME) == Path(want)


@pytest.mark.parametrize(
    ("environ", "platform", "want"), [c[1:] for c in STATES], ids=[c[0] for c in STATES]
)
def test_state_dir(environ: dict[str, str], platform: str, want: str) -> None:
    assert state_dir(environ, platform, HOME) == Path(want)
