"""Pairs of the tables that no schedule reaches, because a guard decides before the table does.

The simulation checks that they stay unreached; test_guards.py calls each guard, and tests/core the
tables' own word on them: a guard that is removed one day falls back on it.
"""

from enum import Enum

from core.handoff import SinkEvent, SinkState, SourceEvent, SourceState

_ENDED = SourceState.ENDED
BOOK_REFUSES = "SourceBook: a tombstone refuses the call; an ended source is no longer in the book"
BOOK_FORGOT = "SourceBook: what has ended is no longer in the book, so its step reports to nobody"
RELEASED = "Source.release returns at once when it has ended: release is idempotent"
EXPIRED = "Source.expire returns at once when it has ended"
NOT_LOST = "Sink.expire returns at once unless the sink is lost"
NO_ROOM = "Sink.begin_write: an ended sink has given its blocks back, so that no segment fits"

UNREACHABLE: dict[tuple[Enum, Enum], str] = {
    (_ENDED, SourceEvent.PREFILL): BOOK_REFUSES,
    (_ENDED, SourceEvent.FETCH): BOOK_REFUSES,
    (_ENDED, SourceEvent.RENEW): BOOK_REFUSES,
    (_ENDED, SourceEvent.PROGRESS): BOOK_FORGOT,
    (_ENDED, SourceEvent.FINISH): BOOK_FORGOT,
    (_ENDED, SourceEvent.ABORT): BOOK_FORGOT,
    (_ENDED, SourceEvent.COMMIT): RELEASED,
    (_ENDED, SourceEvent.EXPIRE): EXPIRED,
    (SinkState.WAITING, SinkEvent.EXPIRE): NOT_LOST,
    (SinkState.RESERVING, SinkEvent.EXPIRE): NOT_LOST,
    (SinkState.RECEIVING, SinkEvent.EXPIRE): NOT_LOST,
    (SinkState.COMMITTED, SinkEvent.EXPIRE): NOT_LOST,
    (SinkState.ENDED, SinkEvent.EXPIRE): NOT_LOST,
    (SinkState.ENDED, SinkEvent.SEGMENT): NO_ROOM,
}
