"""Policies and the simulator compiled: plain source, run by numba where millions of decisions are
made."""

import dis
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba

from core.paths import user_cache_dir

PACKAGES = ("policy.", "planner.")
ROOT = Path(__file__).parent.parent


def compiled(function: Callable[..., Any], *, keeps: bool = False) -> Any:  # noqa: ANN401 - as numba
    """The function, and all that it calls of `policy` and `planner`, as machine code.

    The source stays as it is: each function is copied with globals in which the others are
    compiled. `keeps`: the result is stored, under a name that changes with any of the sources.
    Raises numba's TypingError, at the first call, for source it cannot compile.
    """
    return _compile(function, {}, keeps)


def _compile(function: Callable[..., Any], done: dict[str, Any], keeps: bool) -> Any:  # noqa: ANN401
    assert isinstance(function, FunctionType), "only plain functions can be compiled"
    name = f"{function.__module__}.{function.__qualname__}"
    if name not in done:
        known = dict(function.__globals__)
        for used in _globals_of(function):
            value = known.get(used)
            if isinstance(value, FunctionType) and value.__module__.startswith(PACKAGES):
                known[used] = _compile(value, done, False)
        copy = FunctionType(function.__code__, known, function.__name__, function.__defaults__)
        done[name] = _machine_code(copy, keeps)
    return done[name]


def _globals_of(function: FunctionType) -> set[str]:
    """Names that it looks up; `co_names` has those of attributes, too."""
    return {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}


def _machine_code(copy: FunctionType, keeps: bool) -> Any:  # noqa: ANN401
    if not keeps:
        return numba.njit(error_model="numpy", nogil=True)(copy)
    folder, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(_cache_dir())
    try:
        return numba.njit(error_model="numpy", nogil=True, cache=True)(copy)
    finally:
        numba.config.CACHE_DIR = folder


def _cache_dir() -> Path:
    """numba looks at one file's age only; what it calls may have changed, too."""
    digest = hashlib.sha256(numba.__version__.encode())
    for package in PACKAGES:
        for path in sorted((ROOT / package.rstrip(".")).rglob("*.py")):
            digest.update(path.read_bytes())
    return user_cache_dir() / "machine_code" / digest.hexdigest()[:16]
