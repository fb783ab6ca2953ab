"""One choice's part in what the router learns from failures, and what it is told to wait for."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from core.errors import BatonError, DeadlinePassed, PeerLost, RetriesSpent
from core.ids import InstanceId
from core.lifecycle import State
from core.request import Request
from core.work import KvLostReason
from router.actions import Output, StartPrefill
from router.flow import Flow
from router.link import InstanceLink
from router.surroundings import Surroundings
from router.suspects import VERDICT_S


class Witness:
    """Reads the flow; writes to the outliers, the suspects and the retries of the router."""

    def __init__(self, request: Request, around: Surroundings, flow: Flow) -> None:
        self._request = request
        self._around = around
        self._flow = flow
        self._case = around.suspects.open(request)
        self._computing_attempt: int | None = None
        """Whose prefill has begun its first step and, as far as is known, not ended its last."""
        self._lost_at_s: float | None = None
        """Since when it has to be placed anew."""

    @contextmanager
    def testifies(self) -> Iterator[None]:
        """From admission to the end."""
        try:
            with self._around.retries.running(self._request.handoff_id):
                yield
        finally:
            completed = self._flow.state is State.FINISHED
            self._around.suspects.close(self._case, completed=completed)

    # --- what happens -----------------------------------------------------------------------

    def prefill_began(self, action: StartPrefill) -> None:
        """Its first step runs."""
        self._computing_attempt = action.attempt
        self.look()

    def prefill_sampled(self, action: StartPrefill) -> None:
        """Its last step has ended."""
        self._computing_attempt = None
        self._around.outliers.served(action.instance_id)

    def prefill_failed(self, action: StartPrefill, error: BatonError) -> None:
        """Its stream ended with an error."""
        prefill = self._flow.prefill
        if prefill is None or prefill.attempt != action.attempt or prefill.kv_taken:
            return
        # A Prefill call's time is the request's own deadline: nobody's fault.
        if not isinstance(error, DeadlinePassed):
            self._around.outliers.failed(action.instance_id, error)
        # Its first step may run and the word of it have died with the instance.
        if self._flow.state is State.PREFILLING and isinstance(error, PeerLost):
            self._around.suspects.broke(self._case, action.instance_id)

    def decode_refused(self, instance_id: InstanceId, error: BatonError) -> None:
        """A call to it failed."""
        self._around.outliers.failed(instance_id, error)

    def told(self, instance_id: InstanceId, output: Output) -> None:
        """News from a decode instance, before the flow hears it."""
        decode, prefill, outliers = self._flow.decode, self._flow.prefill, self._around.outliers
        if decode is None or decode.instance_id != instance_id:
            return
        if output.error is not None:
            outliers.failed(instance_id, output.error)
        elif output.finish_reason is not None:
            outliers.served(instance_id)
        if prefill is None or prefill.instance_id == instance_id:
            return
        if output.committed:
            outliers.handed_over(prefill.instance_id, instance_id)
        elif output.kv_lost is not None and output.attempt == decode.told_attempt:
            outliers.kv_lost(prefill.instance_id, instance_id, output.kv_lost)
            is_prefilling = self._flow.state is State.PREFILLING
            if output.kv_lost is KvLostReason.PEER and is_prefilling:
                # The stream between the two may break before the one to here does, and before the
                # word that its first step runs is read.
                self._around.suspects.broke(self._case, prefill.instance_id)

    def look(self) -> None:
        """Where the choice is now, and how far."""
        flow, case = self._flow, self._case
        sides = (flow.prefill, flow.decode)
        case.at = frozenset(side.instance_id for side in sides if side is not None)
        case.in_step = {}
        if flow.state is State.DECODING and flow.decode is not None:
            case.in_step[flow.decode.instance_id] = False
        elif (
            flow.state is State.PREFILLING
            and flow.prefill is not None
            and flow.prefill.attempt == self._computing_attempt
        ):
            case.in_step[flow.prefill.instance_id] = True
        self._around.suspects.progressed(case, flow.delivery.num_tokens)

    def placed(self) -> None:
        """All that was missing has an instance."""
        again = self._flow.num_attempts > 0
        self._around.retries.placed(again=again)
        self._lost_at_s = None

    # --- what it has to wait for ------------------------------------------------------------

    def check(self) -> None:
        """Raise Quarantined when it must never be placed again."""
        if self._flow.num_attempts:
            self._around.suspects.check(self._request)

    @property
    def is_undecided(self) -> bool:
        """An instance that may have died under it: whether it did is known in a moment."""
        heard_at_s = self._around.membership.heard_at_s
        return self._around.suspects.is_undecided(self._case, heard_at_s)

    def unproven(self, links: Iterable[InstanceLink]) -> dict[InstanceLink, float]:
        """Who has to show, and since when, that it lives.

        One power cut ends many processes, and the first is heard of while the links to the others
        look well: whoever was placed anew there would seem to be the cause.
        """
        if not self._flow.num_attempts:
            return {}
        now_s = self._around.clock.now_s()
        if self._lost_at_s is None:
            self._lost_at_s = now_s
        since_s = self._lost_at_s
        # Nobody waits for a proof longer than for a verdict.
        if now_s - since_s >= VERDICT_S:
            return {}
        return {link: since_s for link in links if link.proven_at_s < since_s}

    @property
    def apart_from(self) -> frozenset[InstanceId]:
        """Where other suspects are that it should not meet."""
        return self._around.suspects.apart_from(self._case)

    @property
    def refusal(self) -> RetriesSpent | None:
        """Why it may not be placed again now."""
        if not self._flow.num_attempts:
            return None
        return self._around.retries.refusal(self._request.handoff_id)
