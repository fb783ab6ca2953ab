"""Where the cache folder is, per platform."""

from pathlib import Path

import pytest

from core.paths import cache_dir

HOME = Path("/users/me")
CASES = [
    # id, environment, platform, want
    ("Linux", {}, "linux", "/users/me/.cache/baton"),
    ("macOS", {}, "darwin", "/users/me/Library/Caches/baton"),
    ("XDG", {"XDG_CACHE_HOME": "/big"}, "linux", "/big/baton"),
    ("XDG on macOS", {"XDG_CACHE_HOME": "/big"}, "darwin", "/big/baton"),
    ("XDG empty", {"XDG_CACHE_HOME": ""}, "linux", "/users/me/.cache/baton"),
    ("XDG relative", {"XDG_CACHE_HOME": "big"}, "linux", "/users/me/.cache/baton"),
]


@pytest.mark.parametrize(
    ("environ", "platform", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_cache_dir(environ: dict[str, str], platform: str, want: str) -> None:
    assert cache_dir(environ, platform, HOME) == Path(want)
