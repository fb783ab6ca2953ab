"""What kernels of several processes need of a word of shared memory: order, and sleep until it
changes. Words are 32-bit integers, given by address.

The order is LLVM's, so it holds on every CPU and not only where the hardware is strict. Sleep is
Linux's futex, in its form for a word that several processes have mapped.
"""

import platform
import sys
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from engine.cpu.jit import exact

NAP_S = 0.02
"""What `sleep_while` takes at most: a sleeper looks that often whether the others still live."""

_FUTEX_CALLS = {"x86_64": 202, "aarch64": 98}
_FUTEX = _FUTEX_CALLS.get(platform.machine(), -1) if sys.platform == "linux" else -1
_WAIT, _WAKE, _ALL = 0, 1, 2**31 - 1
_NAP = np.array([0, int(NAP_S * 1e9)])
"""A timespec: seconds, nanoseconds."""

_long = types.int64
# Variadic in C, but called like any other on the two machines above.
_syscall: Any = types.ExternalFunction("syscall", _long(_long, _long, _long, _long, _long))


def have_sleep() -> bool:
    """Whether this machine has `sleep_while` and `wake_all`."""
    return _FUTEX >= 0


def _inlined(function: Any) -> Any:  # noqa: ANN401
    """numba's `intrinsic`, called without the typing context that it adds by itself."""
    return intrinsic(function)


def _pointer(builder: Any, address: Any) -> Any:  # noqa: ANN401
    return builder.inttoptr(address, ir.IntType(32).as_pointer())


@_inlined
def load_acquire(_typing: Any, _address: Any) -> Any:  # noqa: ANN401
    """The word; reads and writes that follow stay behind it."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:  # noqa: ANN401
        return builder.load_atomic(_pointer(builder, given[0]), "acquire", 4)

    return types.int32(types.int64), generate


@_inlined
def store_ordered(_typing: Any, _address: Any, _value: Any) -> Any:  # noqa: ANN401
    """Set the word; every read and write before it is over, none after it has begun."""

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:  # noqa: ANN401
        builder.store_atomic(given[1], _pointer(builder, given[0]), "release", 4)
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64, types.int32), generate


@_inlined
def add_ordered(_typing: Any, _address: Any, _value: Any) -> Any:  # noqa: ANN401
    """Add to the word; every read and write before it is over, none after it has begun."""

    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:  # noqa: ANN401
        builder.atomic_rmw("add", _pointer(builder, given[0]), given[1], "seq_cst")
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64, types.int32), generate


@exact
def sleep_while(word: int, value: int | np.int32) -> None:
    """Sleep while the word is `value`, until woken, a signal or `NAP_S` has passed."""
    _syscall(_FUTEX, word, _WAIT, value, _NAP.ctypes.data)


@exact
def wake_all(word: int) -> None:
    """End the sleep of all who sleep on the word."""
    _syscall(_FUTEX, word, _WAKE, _ALL, 0)
