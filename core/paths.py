"""Where Baton keeps its own files: what can be fetched or computed again, and what cannot."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path


def cache_dir(environ: Mapping[str, str], platform: str, home: Path) -> Path:
    """Baton's folder inside the user's cache folder; `platform` is `sys.platform`'s word."""
    default = home / ("Library/Caches" if platform == "darwin" else ".cache")
    return _xdg(environ, "XDG_CACHE_HOME", default) / "baton"


def state_dir(environ: Mapping[str, str], platform: str, home: Path) -> Path:
    """The same, of what must outlive a cleaned cache: which clusters this user runs."""
    mac = platform == "darwin"
    default = home / ("Library/Application Support" if mac else ".local/state")
    return _xdg(environ, "XDG_STATE_HOME", default) / "baton"


def user_cache_dir() -> Path:
    """`cache_dir` of the user running this process."""
    # Where a cache lies is the platform's convention, not a setting of Baton.
    return cache_dir(os.environ, sys.platform, Path.home())  # noqa: TID251


def user_state_dir() -> Path:
    """`state_dir` of the user running this process."""
    return state_dir(os.environ, sys.platform, Path.home())  # noqa: TID251


def _xdg(environ: Mapping[str, str], name: str, default: Path) -> Path:
    given = environ.get(name, "")
    # The XDG specification: a relative path is invalid and to be ignored.
    return Path(given) if given and Path(given).is_absolute() else default
