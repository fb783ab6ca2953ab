"""The life of a request as its router sees it (design: life of a request, failure table)."""

from enum import StrEnum

from core.tables import Ruling, Table


class State(StrEnum):
    """Where a request stands."""

    QUEUED = "queued"
    """Admitted; needs a prefill instance (and a decode instance, unless one is reserved)."""
    PREFILLING = "prefilling"
    """Both sides are started; this attempt has sampled no token yet."""
    HANDING_OFF = "handing_off"
    """Prefill has sampled; decode has not committed."""
    DECODING = "decoding"
    """Decode has the KV."""
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to it. Events of attempts that were replaced never get here."""

    PLACED = "placed"
    """Every missing side has an instance, and its call was started."""
    PREFILLED = "prefilled"
    """Prefill sampled this attempt's first token and the answer goes on."""
    COMMITTED = "committed"
    """Decode has verified the KV."""
    STOPPED = "stopped"
    """The answer is complete."""
    PREFILL_LOST = "prefill_lost"
    """The prefill instance died, or ended the attempt."""
    KV_LOST = "kv_lost"
    """Decode cannot get the KV from this prefill."""
    DECODE_LOST = "decode_lost"
    """The decode instance died, or ended the attempt."""
    REFUSED = "refused"
    """It cannot be placed again: attempts used up, or an error no retry can mend."""
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


TERMINAL = frozenset({State.FINISHED, State.CANCELLED, State.FAILED})

_ENDINGS = {
    Event.REFUSED: State.FAILED,
    Event.CANCELLED: State.CANCELLED,
    Event.DEADLINE: State.FAILED,
}
_OVER: dict[Event, State | Ruling] = dict.fromkeys(Event, Ruling.DROP)

LIFECYCLE: Table[State, Event] = Table(
    "request",
    State,
    Event,
    {
        State.QUEUED: {
            **_ENDINGS,
            Event.PLACED: State.PREFILLING,
            Event.PREFILLED: Ruling.DROP,
            # The prefill was lost just after its last frame: decode has all it needs.
            Event.COMMITTED: State.DECODING,
            Event.STOPPED: State.FINISHED,
            Event.PREFILL_LOST: Ruling.DROP,
            Event.KV_LOST: Ruling.DROP,
            # Its reservation is gone; a decode instance is missing too now.
            Event.DECODE_LOST: State.QUEUED,
        },
        State.PREFILLING: {
            **_ENDINGS,
            # Decode was lost and placed again while prefill goes on.
            Event.PLACED: State.PREFILLING,
            Event.PREFILLED: State.HANDING_OFF,
            # Decode's connection was faster than prefill's.
            Event.COMMITTED: State.DECODING,
            Event.STOPPED: State.FINISHED,
            Event.PREFILL_LOST: State.QUEUED,
            Event.KV_LOST: State.QUEUED,
            Event.DECODE_LOST: State.PREFILLING,
        },
        State.HANDING_OFF: {
            **_ENDINGS,
            Event.PLACED: State.HANDING_OFF,
            Event.PREFILLED: Ruling.DROP,
            Event.COMMITTED: State.DECODING,
            Event.STOPPED: State.FINISHED,
            Event.PREFILL_LOST: State.QUEUED,
            Event.KV_LOST: State.QUEUED,
            # A new decode fetches the same KV from prefill's lease.
            Event.DECODE_LOST: State.HANDING_OFF,
        },
        State.DECODING: {
            **_ENDINGS,
            # A retarget was under way when decode committed with the old prefill.
            Event.PLACED: Ruling.DROP,
            Event.PREFILLED: Ruling.DROP,
            Event.COMMITTED: Ruling.DROP,
            Event.STOPPED: State.FINISHED,
            # After the commit nobody needs the prefill.
            Event.PREFILL_LOST: Ruling.DROP,
            Event.KV_LOST: Ruling.DROP,
            # Prompt and delivered tokens are prefilled elsewhere.
            Event.DECODE_LOST: State.QUEUED,
        },
        State.FINISHED: _OVER,
        State.CANCELLED: _OVER,
        State.FAILED: _OVER,
    },
)
