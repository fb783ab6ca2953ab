"""How rough one seed's world is, and how long its waits are."""

from dataclasses import dataclass
from random import Random

TICK_S = 1 / 1024
"""Binary, so that sums of moments are exact and timers fire when they are due."""
LEASE = 400
AWAIT = 250
RETARGET_WAIT = 400
PROGRESS = 300
ATTEMPT = 900
SILENCE = 600
SLACK = 64
"""Ticks between a deadline and the end of the request at most."""
MAX_ATTEMPTS = 6
MIN_EVENTS = 60
"""New requests arrive until so many events have happened."""


@dataclass(slots=True, frozen=True)
class Profile:
    """Probabilities are per message, per segment or per request; 0 to 1."""

    loss: float = 0.0
    duplicate: float = 0.0
    slow: float = 0.0
    damage: float = 0.0
    rogue: float = 0.0
    """Of a frame or call that a correct peer would not send now."""
    cancel: float = 0.0
    error: float = 0.0
    """Of an error that no retry mends."""
    spread: int = 12
    """Ticks of network delay at most."""
    num_crashes: int = 0
    num_breaks: int = 0
    router_crash: float = 0.0
    hurry: float = 0.0
    """Of a deadline that is hardly long enough."""
    stop_string: float = 0.0
    deadline: int = 20000
    """Ticks; the shortest of the seed."""
    is_calm: bool = False
    """Nothing but delay and reordering: every request must finish."""
    is_overload: bool = False
    """The same, with three times what the instances can do: each finishes or is refused."""
    gap: int = 60
    """Ticks between two arrivals at most."""
    max_queued: int = 100
    """Requests that wait at one instance; more are refused."""
    attempt: int = ATTEMPT
    """Ticks that an attempt may take without any progress."""
    has_slots: bool = False
    """Payloads go through memory of the source that its streams share."""
    gives_parts: bool = False
    """A decode instance reserves what there is, and the rest when there is more."""


OVERLOAD_REQUESTS = 24


def draw(rng: Random) -> Profile:
    """One of overload, calm, lossy, crashing and hostile, with its own rates."""
    kind = rng.random()
    has_slots, gives_parts = rng.random() < 0.5, rng.random() < 0.3
    if kind < 0.05:
        return Profile(is_overload=True, gap=12, max_queued=4, attempt=10**6, has_slots=has_slots)
    if kind < 0.15:
        return Profile(is_calm=True, has_slots=has_slots, gives_parts=gives_parts)
    lossy, crashing, hostile = kind < 0.5, 0.35 < kind < 0.85, kind > 0.7
    return Profile(
        loss=rng.random() * 0.06 if lossy else 0.005,
        duplicate=rng.random() * 0.2 if lossy or hostile else 0.01,
        slow=rng.random() * 0.25,
        damage=rng.random() * 0.3 if lossy or hostile else 0.01,
        rogue=0.25 if hostile else 0.0,
        cancel=0.2,
        error=0.02,
        spread=4 + int(rng.random() * 30),
        num_crashes=int(1 + rng.random() * 3) if crashing else 0,
        num_breaks=int(rng.random() * 3),
        router_crash=0.15,
        hurry=0.1,
        stop_string=0.2,
        deadline=600 if hostile else 1500,
        has_slots=has_slots,
        gives_parts=gives_parts,
    )
