"""Options that hold more than one value, from text; each error names the option."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from math import inf

from core.errors import ConfigError
from core.slo import Slo


def parse_slo(text: str) -> Slo | None:
    """Of `ttft=0.5,tpot=0.05`, in seconds; None of an empty text."""
    if not text:
        return None
    known = [f.name.removesuffix("_s") for f in fields(Slo)]
    limits = dict[str, float]()
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() not in known or not _is_positive(value):
            raise ConfigError(
                (f"--slo must be like ttft=0.5,tpot=0.05 of {', '.join(known)}; got {text!r}",)
            )
        limits[f"{name.strip()}_s"] = float(value)
    return Slo(**limits)


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < inf
    except ValueError:
        return False


def parse_pair(option: str, text: str) -> tuple[int, int]:
    """Of `A:B`, both at least 1."""
    match text.split(":"):
        case [first, second] if first.isdecimal() and second.isdecimal():
            pair = int(first), int(second)
            if min(pair) >= 1:
                return pair
    raise ConfigError((f"{option} must be two numbers of at least 1 as A:B, got {text!r}",))


def parse_headers(texts: Iterable[str]) -> dict[str, str]:
    """Of `NAME:VALUE` each."""
    pairs = [text.partition(":") for text in texts]
    for name, colon, _ in pairs:
        if not (name.strip() and colon):
            # Not what was given: a header may hold a secret.
            raise ConfigError(("--header must be NAME:VALUE, with a name and a colon",))
    return {name.strip(): value.strip() for name, _, value in pairs}


def problems_of(read: Callable[[], object]) -> Iterator[str]:
    """What keeps it from being read; it is read again when it is needed."""
    try:
        read()
    except ConfigError as error:
        yield from error.problems
