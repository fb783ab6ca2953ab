"""Where Baton keeps what it can always fetch or compute again."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def cache_dir(environ: Mapping[str, str], platform: str, home: Path) -> Path:
    """Baton's folder inside the user's cache folder; `platform` is `sys.platform`'s word."""
    xdg = environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is invalid and to be ignored.
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "baton"
    return home / ("Library/Caches" if platform == "darwin" else ".cache") / "baton"


def user_cache_dir() -> Path:
    """`cache_dir` of the user running this process."""
    # Where a cache lies is the platform's convention, not a setting of Baton.
    return cache_dir(os.environ, sys.platform, Path.home())  # noqa: TID251
