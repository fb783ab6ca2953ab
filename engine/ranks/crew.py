"""The leader's child ranks: one lost, all lost."""

import threading
from collections.abc import Callable, Sequence

from core.errors import BatonError
from engine.ranks.errors import ChannelClosed, ChannelStalled, RankLost
from engine.ranks.process import RankProcess
from engine.ranks.spec import RankFiles, RankSpec
from engine.ranks.wire import Answer, decode_answer

NOTICE_S = 2.0
"""A broken pipe is seen before the process that broke it is known to have ended: how long the
step waits to learn which it was."""


class Crew:
    """Starts them, asks all of them, and ends all when one ends."""

    def __init__(self, timeout_s: float, on_lost: Callable[[str], None]) -> None:
        """`on_lost(reason)` is called once at most, in any thread, and only after `serve`."""
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._ranks: list[RankProcess] = []
        self._unanswered: list[RankProcess] = []
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._is_lost = threading.Event()
        self._is_serving = False
        self._is_closing = False

    @property
    def pids(self) -> dict[int, int]:
        """Of each rank's process."""
        return {rank.rank: rank.pid for rank in self._ranks}

    def has_ended(self) -> bool:
        """Whether the ranks are gone, or about to be: none of them answers any more."""
        return self._reason is not None or self._is_closing

    def start(self, specs: Sequence[RankSpec], files: Sequence[RankFiles]) -> None:
        """All at the same time: each spends seconds on imports."""
        for spec, of_rank in zip(specs, files, strict=True):
            self._ranks.append(RankProcess(spec, of_rank, self.lose))

    def serve(self) -> None:
        """From here a loss is told to `on_lost`. Raises RankLost if it is too late for that."""
        with self._lock:
            self._is_serving = True
            reason = self._reason
        if reason is not None:
            raise RankLost(reason)

    def check(self) -> None:
        """Raises RankLost if one is lost."""
        if self._reason is not None:
            raise RankLost(self._reason)

    def send(self, frame: bytes) -> None:
        """To each. Raises ChannelClosed or ChannelStalled."""
        self._unanswered = list(self._ranks)
        for rank in self._ranks:
            rank.channel.send(frame, self._timeout_s)

    def answers(self, timeout_s: float | None = None) -> list[Answer]:
        """One of each, in order of ranks; it may be an error.

        Raises:
            ChannelClosed: a rank is gone.
            ChannelStalled: a rank says nothing in time.
        """
        self._unanswered = list(self._ranks)
        return [self._answer(rank, timeout_s or self._timeout_s) for rank in self._ranks]

    def explain(self, error: BatonError) -> RankLost:
        """Which rank is to blame for `error` of a step; all of them have ended then."""
        if not self._is_lost.wait(NOTICE_S):
            silent = [str(rank) for rank in self._unanswered if self._is_silent(rank)]
            self.lose(f"{', '.join(silent)} did not answer: {error}" if silent else str(error))
        assert self._reason is not None
        return RankLost(self._reason)

    def lose(self, reason: str) -> None:
        """End all: what is left of a model computes nothing, and would only wait for the rest."""
        with self._lock:
            if self._reason is not None or self._is_closing:
                return
            self._reason = reason
            notify = self._is_serving
        for rank in self._ranks:
            rank.kill()
        self._is_lost.set()
        if notify:
            self._on_lost(reason)

    def close(self) -> None:
        """End all and wait for them; nobody is told."""
        with self._lock:
            self._is_closing = True
        for rank in self._ranks:
            rank.channel.close()
        for rank in self._ranks:
            rank.stop()

    def _answer(self, rank: RankProcess, timeout_s: float) -> Answer:
        answer = decode_answer(rank.channel.receive(timeout_s))
        self._unanswered.remove(rank)
        return answer if answer.error is None else Answer(error=f"{rank}: {answer.error}")

    def _is_silent(self, rank: RankProcess) -> bool:
        """Neither an answer nor its end is there, a moment after one was due."""
        try:
            rank.channel.receive(NOTICE_S)
        except ChannelStalled:
            return True
        except ChannelClosed:
            return False
        return False
