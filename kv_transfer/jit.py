"""How this package's kernels are compiled: by numba, at their first call, for the machine they run
on."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from core.paths import user_cache_dir

F = TypeVar("F", bound=Callable[..., Any])

# numpy's way with errors: a check for a division by 0 would keep a loop from being vectorised.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def kernel(function: F) -> F:
    """Compile; the GIL is free while it runs, and the order of operations is kept. Sizes are not
    checked: callers pass what fits. May call kernels of its own file only.

    Machine code is kept in the user's cache; where that cannot be written each process compiles
    for itself, about 1 s more at its start.
    """
    config: Any = numba.config
    # One setting for the whole process, read while a kernel is declared: other packages keep
    # their kernels elsewhere, whoever is imported first.
    before, config.CACHE_DIR = config.CACHE_DIR, str(_cache_dir(function))
    try:
        return cast("F", numba.njit(cache=True, **_OPTIONS)(function))
    except RuntimeError:  # numba found no place for its cache
        return cast("F", numba.njit(**_OPTIONS)(function))
    finally:
        config.CACHE_DIR = before


def _cache_dir(function: Callable[..., Any]) -> Path:
    """By the source that goes into a kernel: numba looks at dates and sizes alone, and not at this
    file's."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in (__file__, function.__code__.co_filename):
        digest.update(Path(path).read_bytes())
    return user_cache_dir() / "kernels" / digest.hexdigest()[:16]


def _inlined(function: Any) -> Any:  # noqa: ANN401
    """numba's `intrinsic`, called without the typing context that it adds by itself."""
    return intrinsic(function)


@_inlined
def load_word(_typing: Any, data: Any, _at: Any) -> Any:  # noqa: ANN401
    """Eight bytes of a byte array from an index on, which need not be aligned, as one number.

    An index is what numba would want of an array of words, and those must be aligned.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:  # noqa: ANN401
        array = context.make_array(signature.args[0])(context, builder, given[0])
        place = builder.gep(array.data, [given[1]])
        word = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)
        return word if sys.byteorder == "little" else builder.bswap(word)

    return types.uint64(data, types.int64), generate
