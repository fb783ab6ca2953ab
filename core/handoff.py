"""Both ends of a handoff as tables: the source keeps KV under a lease, the sink fetches it."""

from enum import StrEnum

from core.tables import Ruling, Table


class SourceState(StrEnum):
    """The prefill side of one attempt."""

    AWAITED = "awaited"
    """A Fetch came before its Prefill call; waits a bounded time."""
    QUEUED = "queued"
    """Accepted; no blocks yet."""
    COMPUTING = "computing"
    """All blocks of the prompt are allocated; segments flow as layers are computed."""
    LEASED = "leased"
    """Computed; readable until committed, aborted or expired."""
    ENDED = "ended"


class SourceEvent(StrEnum):
    """What can happen there."""

    PREFILL = "prefill"
    START = "start"
    PROGRESS = "progress"
    FINISH = "finish"
    FETCH = "fetch"
    FETCH_LOST = "fetch_lost"
    CREDIT = "credit"
    REFETCH = "refetch"
    RENEW = "renew"
    COMMIT = "commit"
    ABORT = "abort"
    """Released without commit, cancelled, deadline passed, superseded, or failed."""
    EXPIRE = "expire"


class SinkState(StrEnum):
    """The decode side of one handoff."""

    WAITING = "waiting"
    """Fetch is open; the prefill has not started."""
    RESERVING = "reserving"
    """Started; waits for room, grants no credit."""
    RECEIVING = "receiving"
    """Blocks are reserved, credit is granted, segments arrive."""
    COMMITTED = "committed"
    """Every byte is verified and in its block; the request decodes."""
    LOST = "lost"
    """This prefill cannot deliver; the reservation waits a bounded time for a Retarget."""
    ENDED = "ended"


class SinkEvent(StrEnum):
    """What can happen there."""

    DECODE = "decode"
    ANNOUNCE = "announce"
    RESERVE = "reserve"
    SEGMENT = "segment"
    CORRUPT = "corrupt"
    END = "end"
    COMPLETE = "complete"
    DIGEST_WRONG = "digest_wrong"
    LOSE = "lose"
    """Peer dead, link stalled, lease gone, or corrupt past the refetch limit."""
    RETARGET = "retarget"
    STOP = "stop"
    EXPIRE = "expire"


_A, _B, _C = SourceState.AWAITED, SourceState.QUEUED, SourceState.COMPUTING
_L, _X = SourceState.LEASED, SourceState.ENDED

SOURCE: Table[SourceState, SourceEvent] = Table(
    "handoff source",
    SourceState,
    SourceEvent,
    {
        _A: {
            SourceEvent.PREFILL: _B,
            SourceEvent.START: Ruling.BUG,
            SourceEvent.PROGRESS: Ruling.BUG,
            SourceEvent.FINISH: Ruling.BUG,
            SourceEvent.FETCH: _A,
            SourceEvent.FETCH_LOST: _X,
            SourceEvent.CREDIT: _A,
            SourceEvent.REFETCH: Ruling.REFUSE,
            SourceEvent.RENEW: _A,
            SourceEvent.COMMIT: Ruling.REFUSE,
            SourceEvent.ABORT: _X,
            SourceEvent.EXPIRE: _X,
        },
        _B: {
            SourceEvent.PREFILL: Ruling.REFUSE,
            SourceEvent.START: _C,
            SourceEvent.PROGRESS: Ruling.BUG,
            SourceEvent.FINISH: Ruling.BUG,
            SourceEvent.FETCH: _B,
            SourceEvent.FETCH_LOST: _B,
            SourceEvent.CREDIT: _B,
            SourceEvent.REFETCH: Ruling.REFUSE,
            SourceEvent.RENEW: _B,
            SourceEvent.COMMIT: Ruling.REFUSE,
            SourceEvent.ABORT: _X,
            # No lease yet; the request's deadline bounds the queue, as an abort.
            SourceEvent.EXPIRE: Ruling.DROP,
        },
        _C: {
            SourceEvent.PREFILL: Ruling.REFUSE,
            SourceEvent.START: Ruling.BUG,
            SourceEvent.PROGRESS: _C,
            SourceEvent.FINISH: _L,
            SourceEvent.FETCH: _C,
            SourceEvent.FETCH_LOST: _C,
            SourceEvent.CREDIT: _C,
            SourceEvent.REFETCH: _C,
            SourceEvent.RENEW: _C,
            SourceEvent.COMMIT: Ruling.REFUSE,
            SourceEvent.ABORT: _X,
            SourceEvent.EXPIRE: Ruling.DROP,
        },
        _L: {
            SourceEvent.PREFILL: Ruling.REFUSE,
            SourceEvent.START: Ruling.BUG,
            SourceEvent.PROGRESS: Ruling.BUG,
            SourceEvent.FINISH: Ruling.BUG,
            SourceEvent.FETCH: _L,
            SourceEvent.FETCH_LOST: _L,
            SourceEvent.CREDIT: _L,
            SourceEvent.REFETCH: _L,
            SourceEvent.RENEW: _L,
            SourceEvent.COMMIT: _X,
            SourceEvent.ABORT: _X,
            SourceEvent.EXPIRE: _X,
        },
        _X: {
            # A tombstone: the cancel overtook the call.
            SourceEvent.PREFILL: Ruling.REFUSE,
            SourceEvent.START: Ruling.BUG,
            # A step that was running when the attempt ended reports to nobody.
            SourceEvent.PROGRESS: Ruling.DROP,
            SourceEvent.FINISH: Ruling.DROP,
            SourceEvent.FETCH: Ruling.REFUSE,
            SourceEvent.FETCH_LOST: Ruling.DROP,
            SourceEvent.CREDIT: Ruling.DROP,
            SourceEvent.REFETCH: Ruling.DROP,
            SourceEvent.RENEW: Ruling.REFUSE,
            # Release is idempotent.
            SourceEvent.COMMIT: Ruling.DROP,
            SourceEvent.ABORT: Ruling.DROP,
            SourceEvent.EXPIRE: Ruling.DROP,
        },
    },
)

_LATE: dict[SinkEvent, SinkState | Ruling] = {
    SinkEvent.DECODE: Ruling.DROP,
    SinkEvent.ANNOUNCE: Ruling.DROP,
    SinkEvent.RESERVE: Ruling.BUG,
    SinkEvent.SEGMENT: Ruling.DROP,
    SinkEvent.CORRUPT: Ruling.DROP,
    SinkEvent.END: Ruling.DROP,
    SinkEvent.COMPLETE: Ruling.BUG,
    SinkEvent.DIGEST_WRONG: Ruling.BUG,
    SinkEvent.LOSE: SinkState.LOST,
    SinkEvent.RETARGET: SinkState.WAITING,
    SinkEvent.STOP: SinkState.ENDED,
    SinkEvent.EXPIRE: Ruling.DROP,
}

SINK: Table[SinkState, SinkEvent] = Table(
    "handoff sink",
    SinkState,
    SinkEvent,
    {
        SinkState.WAITING: {**_LATE, SinkEvent.ANNOUNCE: SinkState.RESERVING},
        SinkState.RESERVING: {**_LATE, SinkEvent.RESERVE: SinkState.RECEIVING},
        SinkState.RECEIVING: {
            **_LATE,
            # Credits grow as room is made.
            SinkEvent.RESERVE: SinkState.RECEIVING,
            SinkEvent.SEGMENT: SinkState.RECEIVING,
            SinkEvent.CORRUPT: SinkState.RECEIVING,
            SinkEvent.END: SinkState.RECEIVING,
            SinkEvent.COMPLETE: SinkState.COMMITTED,
            SinkEvent.DIGEST_WRONG: SinkState.LOST,
        },
        SinkState.COMMITTED: {
            **_LATE,
            # Commit and Retarget serialise here, and the loser is told.
            SinkEvent.RETARGET: Ruling.REFUSE,
            SinkEvent.LOSE: Ruling.DROP,
        },
        SinkState.LOST: {
            **_LATE,
            SinkEvent.LOSE: Ruling.DROP,
            SinkEvent.EXPIRE: SinkState.ENDED,
        },
        SinkState.ENDED: {
            **_LATE,
            SinkEvent.LOSE: Ruling.DROP,
            SinkEvent.RETARGET: Ruling.REFUSE,
            SinkEvent.STOP: Ruling.DROP,
        },
    },
)
