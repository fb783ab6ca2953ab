"""Policies compiled: the router's own source, run by numba where millions of decisions are made."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - as numba
    """The function, and all that it calls of the `policy` package, as machine code.

    The source stays as it is: each function is copied with globals in which the others are
    compiled. Raises numba's TypingError, at the first call, for source it cannot compile.
    """
    return _compile(function, {})


def _compile(function: Callable[..., Any], done: dict[str, Any]) -> Any:  # noqa: ANN401
    assert isinstance(function, FunctionType), "only plain functions can be compiled"
    name = f"{function.__module__}.{function.__qualname__}"
    if name not in done:
        known = dict(function.__globals__)
        for used in function.__code__.co_names:
            value = known.get(used)
            if isinstance(value, FunctionType) and value.__module__.startswith("policy."):
                known[used] = _compile(value, done)
        copy = FunctionType(function.__code__, known, function.__name__, function.__defaults__)
        done[name] = numba.njit(error_model="numpy")(copy)
    return done[name]
