"""How kernels are compiled: by numba, at their first call, for the machine they run on."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from core.paths import user_cache_dir

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Int8s = npt.NDArray[np.int8]

F = TypeVar("F", bound=Callable[..., Any])

SUMS_IN_ANY_ORDER = {"reassoc", "contract", "nsz"}
"""What lets a sum be vectorised. Not that NaN and infinity never come: one must stay visible."""


def kernel(function: F) -> F:
    """Compile; the GIL is free while it runs. Arrays are not checked: callers pass what fits."""
    return _compiled(function, fastmath=SUMS_IN_ANY_ORDER)


def exact(function: F) -> F:
    """Compile a part of kernels whose operations keep their order."""
    return _compiled(function)


def _compiled(function: F, **options: Any) -> F:
    """Machine code is kept in the user's cache; where that cannot be written each process compiles
    for itself, 4 s more at its start."""
    given: dict[str, Any] = {"nogil": True, "error_model": "numpy", **options}
    try:
        return cast("F", numba.njit(cache=True, **given)(function))
    except RuntimeError:  # numba found no place for its cache
        return cast("F", numba.njit(**given)(function))


def _cache_dir() -> Path:
    """By the source of the engine, where all kernels are: numba looks at a kernel's own file only,
    and would go on using what it compiled in of another that has changed since."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parents[1].glob("**/*.py")):
        digest.update(path.read_bytes())
    return user_cache_dir() / "kernels" / digest.hexdigest()[:16]


# Of numba, for the whole process: nothing else here compiles with it.
numba.config.CACHE_DIR = str(_cache_dir())  # type: ignore[attr-defined]


@exact
def exp(x: np.float32) -> np.float32:
    """e to the power of `x` to 2 units in the last place; 0 below -87, infinity above 88.

    Plain arithmetic, so that a loop over it is vectorised: a call of the C library is not, and
    costs 10 times as much.
    """
    clamped = min(max(x, np.float32(-87.3)), np.float32(88.4))
    power = np.floor(clamped * np.float32(1.44269504) + np.float32(0.5))
    # ln 2 in two parts: `power` times the first is exact.
    rest = clamped - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    value = np.float32(1.9875691500e-4)
    value = value * rest + np.float32(1.3981999507e-3)
    value = value * rest + np.float32(8.3334519073e-3)
    value = value * rest + np.float32(4.1665795894e-2)
    value = value * rest + np.float32(1.6666665459e-1)
    value = value * rest + np.float32(5.0000001201e-1)
    value = value * rest * rest + rest + np.float32(1.0)
    scale = np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)
    if x < np.float32(-87.3):
        return np.float32(0.0)
    if x > np.float32(88.4):
        return np.float32(np.inf)
    return np.float32(value * scale)
