"""Faults planted at named places, for tests of what happens when they come by themselves.

    kv.send.frame=kill@3,kv.receive.segment=error@2,kv.commit=delay:0.2

is place=action[:argument][@which hit]; without the last, every hit. The object is passed to whoever
has such places, as everything else is: two instances in one process can have different faults.
"""

import asyncio
import math
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NoReturn

from core.errors import BatonError, ConfigError

PLACES: Mapping[str, bool] = {
    "kv.open": False,
    "kv.announce": False,
    "kv.send.frame": True,
    "kv.send.end": False,
    "kv.receive.segment": True,
    "kv.scatter": False,
    "kv.commit": False,
    "kv.release": False,
}
"""Where faults can be planted, and whether bytes pass there. A closed list: a misspelt place would
never be hit, and its test would pass without the fault."""

MAX_DELAY_S = 3600.0

Flow = Callable[[str, float], Awaitable[None]]
Data = bytes | memoryview
Change = Callable[[Data, int], tuple[Data, ...]]


class FailpointHit(BatonError):
    """The failpoint of a test, and no other reason."""

    status = "INTERNAL"


async def _kill(place: str, argument: float) -> NoReturn:
    # Not an exit: nothing is flushed, closed or said, as when the host's power goes.
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be outlived")


async def _error(place: str, argument: float) -> None:
    raise FailpointHit(f"failpoint {place}")


async def _stall(place: str, argument: float) -> None:
    # For ever is what is asked for here: the bound under test is that of whoever waits for us.
    await asyncio.get_running_loop().create_future()


async def _delay(place: str, duration_s: float) -> None:
    await asyncio.sleep(duration_s)


def _flip(data: Data, index: int) -> tuple[Data, ...]:
    if not -len(data) <= index < len(data):
        return (data,)
    changed = bytearray(data)
    changed[index] ^= 1
    return (bytes(changed),)


def _truncate(data: Data, num_bytes: int) -> tuple[Data, ...]:
    return (data[:num_bytes],)


def _duplicate(data: Data, _: int) -> tuple[Data, ...]:
    return (data, data)


def _drop(data: Data, _: int) -> tuple[Data, ...]:
    return ()


FLOW_ACTIONS: Mapping[str, Flow] = {
    "kill": _kill,
    "error": _error,
    "stall": _stall,
    "delay": _delay,
}
"""What can happen at any place. The argument of delay: seconds."""
BYTE_ACTIONS: Mapping[str, Change] = {
    "flip": _flip,
    "truncate": _truncate,
    "duplicate": _duplicate,
    "drop": _drop,
}
"""What can become of the bytes that pass a place. The argument of flip: which byte (a negative one
counts from the end), of truncate: how many bytes are left; both may be left out."""
DEFAULT_BYTES: Mapping[str, int] = {"flip": -1, "truncate": -1}
"""The last byte is changed, or cut off: of a frame it belongs to the payload."""

_SYNTAX = re.compile(r"(?P<place>[^=]+)=(?P<action>[^:@]+)(:(?P<argument>[^@]*))?(@(?P<nth>.*))?")


@dataclass(frozen=True, slots=True)
class _Fault:
    """One planted fault."""

    place: str
    action: str
    argument: float
    nth: int | None
    """Which hit, from 1; None: every one."""
    hits: Iterator[int] = field(default_factory=lambda: count(1), compare=False)
    """An iterator, not a number: bytes may pass in several copy threads."""

    def is_due(self) -> bool:
        """Count a hit; whether it is one to act on."""
        hit = next(self.hits)
        return self.nth is None or hit == self.nth


class Failpoints:
    """The faults planted in one process, or in one instance of a test; none by default."""

    def __init__(self, faults: Sequence[_Fault] = ()) -> None:
        self._flow: dict[str, list[_Fault]] = {}
        self._bytes: dict[str, list[_Fault]] = {}
        for fault in faults:
            kind = self._flow if fault.action in FLOW_ACTIONS else self._bytes
            kind.setdefault(fault.place, []).append(fault)

    @classmethod
    def parse(cls, text: str) -> "Failpoints":
        """From the text of a config; empty plants nothing. Raises ConfigError with all problems."""
        faults, problems = list[_Fault](), list[str]()
        for entry in filter(None, map(str.strip, text.split(","))):
            try:
                faults.append(_fault(entry))
            except ValueError as error:
                problems.append(f"failpoint {entry!r}: {error}")
        if problems:
            raise ConfigError(tuple(problems))
        return cls(faults)

    async def hit(self, place: str) -> None:
        """Let happen what is planted here; byte actions are `pass_bytes`'s. Raises FailpointHit."""
        # All count this hit before one of them ends it.
        due = [fault for fault in self._flow.get(place, ()) if fault.is_due()]
        for fault in due:
            await FLOW_ACTIONS[fault.action](place, fault.argument)

    def pass_bytes(self, place: str, data: Data) -> Sequence[Data]:
        """What goes on instead of `data`: usually itself; nothing, or twice the same."""
        passing: tuple[Data, ...] = (data,)
        for fault in self._bytes.get(place, ()):
            if fault.is_due():
                change, argument = BYTE_ACTIONS[fault.action], int(fault.argument)
                passing = tuple(new for old in passing for new in change(old, argument))
        return passing


def _fault(entry: str) -> _Fault:
    """Raises ValueError with what is allowed."""
    parts = _SYNTAX.fullmatch(entry)
    if parts is None:
        raise ValueError("want place=action[:argument][@which hit]")
    place, action = parts["place"], parts["action"]
    _check_place(place, action)
    return _Fault(place, action, _argument(action, parts["argument"]), _nth(parts["nth"]))


def _check_place(place: str, action: str) -> None:
    if place not in PLACES:
        raise ValueError(f"no such place; there are {', '.join(PLACES)}")
    if action not in FLOW_ACTIONS and action not in BYTE_ACTIONS:
        raise ValueError(f"no such action; there are {', '.join((*FLOW_ACTIONS, *BYTE_ACTIONS))}")
    if action in BYTE_ACTIONS and not PLACES[place]:
        carrying = ", ".join(name for name, carries in PLACES.items() if carries)
        raise ValueError(f"no bytes pass {place}; they do at {carrying}")


def _argument(action: str, text: str | None) -> float:
    if action == "delay":
        return _seconds(text)
    if action not in DEFAULT_BYTES:
        if text is not None:
            raise ValueError(f"{action} takes no argument")
        return 0
    if text is None:
        return DEFAULT_BYTES[action]
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{action} takes a whole number of bytes, got {text!r}") from None


def _seconds(text: str | None) -> float:
    wanted = f"delay takes seconds from 0 to {MAX_DELAY_S:.0f}, as in delay:0.2"
    try:
        duration_s = float(text or "nothing")
    except ValueError:
        raise ValueError(wanted) from None
    if not (math.isfinite(duration_s) and 0 <= duration_s <= MAX_DELAY_S):
        raise ValueError(wanted)
    return duration_s


def _nth(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise ValueError(f"which hit is a whole number from 1, got {text!r}")
    return int(text)
