"""Policies and the simulator compiled: plain source, run by numba where millions of decisions are
made."""

import dis
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numba

from core.paths import user_cache_dir

PACKAGES = ("policy.", "planner.")
# numba's types leave out what is used here.
njit: Any = numba.njit
config: Any = numba.config


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to compile; modules and functions by their full names."""

    frugal: frozenset[str] = frozenset()
    """Modules, or functions, that make no arrays and so need not count who uses them, which takes
    most of the time of small ones."""
    inlined: frozenset[str] = frozenset()
    """Functions made part of their caller: each level of calls is optimised anew with all below."""
    instead: tuple[tuple[str, Callable[..., Any]], ...] = ()
    """What stands in for functions that this use never calls; each takes seconds to compile."""
    keeps: bool = False
    """The result is stored, under a name that changes with any of the sources."""

    @property
    def tag(self) -> str:
        """Of how functions differ from what others make of the same source."""
        names = (*(name for name, _ in self.instead), *sorted(self.inlined), *sorted(self.frugal))
        return hashlib.sha256(",".join(names).encode()).hexdigest()[:8]


def compiled(function: Callable[..., Any], recipe: Recipe | None = None) -> Any:  # noqa: ANN401
    """The function, and all that it calls of `policy` and `planner`, as machine code.

    The source stays as it is: each function is copied with globals in which the others are
    compiled. Raises numba's TypingError, at the first call, for source it cannot compile.
    """
    recipe = recipe or Recipe()
    done: dict[str, Any] = {}
    machine_code = _compile(function, done, recipe)
    if not recipe.keeps:
        return machine_code
    return _kept(
        machine_code.py_func, _cache_dir({name.rpartition(".")[0] for name in done}, recipe)
    )


def _compile(function: Callable[..., Any], done: dict[str, Any], recipe: Recipe) -> Any:  # noqa: ANN401
    assert isinstance(function, FunctionType), "only plain functions can be compiled"
    name = f"{function.__module__}.{function.__qualname__}"
    if name in (instead := dict(recipe.instead)):
        return njit(instead[name])
    if name not in done:
        known = dict(function.__globals__)
        for used in _globals_of(function):
            value = known.get(used)
            if isinstance(value, FunctionType) and value.__module__.startswith(PACKAGES):
                known[used] = _compile(value, done, recipe)
        copy = FunctionType(function.__code__, known, function.__name__, function.__defaults__)
        # Machine code from disk is known by its name alone: what was made otherwise, in another
        # process, must not have the same one.
        copy.__qualname__ = f"{function.__qualname__}_{recipe.tag}"
        done[name] = njit(
            error_model="numpy",
            nogil=True,
            _nrt=not {name, function.__module__} & recipe.frugal,
            inline="always" if name in recipe.inlined else "never",
        )(copy)
    return done[name]


def _globals_of(function: FunctionType) -> set[str]:
    """Names that it looks up; `co_names` has those of attributes, too."""
    return {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}


def _kept(function: FunctionType, cache_dir: Path) -> Any:  # noqa: ANN401
    folder, config.CACHE_DIR = config.CACHE_DIR, str(cache_dir)
    try:
        return njit(error_model="numpy", nogil=True, cache=True)(function)
    finally:
        config.CACHE_DIR = folder


def _cache_dir(modules: set[str], recipe: Recipe) -> Path:
    """numba looks at one file's age only; what it calls may have changed, too."""
    digest = hashlib.sha256(numba.__version__.encode())
    digest.update(",".join(name for name, _ in recipe.instead).encode())
    for module in sorted(modules | {__name__}):
        digest.update(Path(str(sys.modules[module].__file__)).read_bytes())
    return user_cache_dir() / "machine_code" / digest.hexdigest()[:16]
