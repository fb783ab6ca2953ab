"""One choice from admission to its end: walks the lifecycle table; decides, does no IO."""

from collections.abc import Sequence

from core.errors import (
    AttemptsExhausted,
    BatonError,
    Cancelled,
    DeadlinePassed,
    KvCorrupt,
    PeerLost,
    WrongState,
)
from core.ids import InstanceId
from core.lifecycle import LIFECYCLE, TERMINAL, Event, State
from core.request import FinishReason, Request, TokenLogprobs
from core.work import KvLostReason
from policy.table import Phase
from router.actions import (
    Acknowledge,
    Action,
    CancelPrefill,
    Deliver,
    Fail,
    Finish,
    Output,
    Retarget,
    StartDecode,
    StartPrefill,
    StopDecode,
)
from router.delivery import Delivery
from router.sides import DecodeSide, PrefillSide, is_final
from rpc.status import RemoteFault


class Flow:
    """Every method takes one event and returns what is to be done, in order.

    After each event the shell looks at `needs`: what is missing is to be placed, all at once.
    """

    def __init__(
        self, request: Request, *, max_attempts: int, num_attempts_before: int = 0
    ) -> None:
        """`num_attempts_before` were made by an earlier request of the same id and epoch."""
        self.request = request
        self.state = State.QUEUED
        self.attempt = num_attempts_before
        self._num_attempts_before = num_attempts_before
        self.prefill: PrefillSide | None = None
        self.decode: DecodeSide | None = None
        self.delivery = Delivery(request.stop, request.resumed_token_ids)
        self.avoid: set[InstanceId] = set()
        """Instances that failed this request; the shell forgives them when nobody else is left."""
        self.wait_error: BatonError | None = None
        """Why it could not be placed when last tried."""
        self.losses: list[BatonError] = []
        """Why it had to be placed anew, each time, in order."""
        self._max_attempts = max_attempts
        self._actions: list[Action] = []

    @property
    def is_over(self) -> bool:
        """Nothing more will happen."""
        return self.state in TERMINAL

    @property
    def num_attempts(self) -> int:
        """How often it was placed."""
        return self.attempt - self._num_attempts_before

    @property
    def needs(self) -> frozenset[Phase]:
        """Which sides have no instance and should have one."""
        if self.is_over or self.state is State.DECODING:
            return frozenset()
        missing = {Phase.PREFILL} if self.state is State.QUEUED else set()
        # The one token that is left comes from prefill itself.
        needs_decode = self.state is State.HANDING_OFF or self.delivery.num_left > 1
        if self.decode is None and needs_decode:
            missing.add(Phase.DECODE)
        return frozenset(missing)

    def begin(self) -> list[Action]:
        """Admitted. A resumed answer may turn out to be complete."""
        if self.delivery.end is not None:
            self._finish(self.delivery.end, decode_ended=False)
        return self._take_actions()

    def placed(self, prefill: InstanceId | None, decode: InstanceId | None) -> list[Action]:
        """Every side named by `needs` has an instance now."""
        self._advance(Event.PLACED)
        self.attempt += 1
        self.wait_error = None
        if prefill is not None:
            self._start_prefill(prefill)
        if decode is not None:
            self._start_decode(decode)
        return self._take_actions()

    def prefill_sampled(
        self,
        attempt: int,
        position: int,
        token_id: int,
        reason: FinishReason | None,
        logprobs: tuple[TokenLogprobs, ...] = (),
    ) -> list[Action]:
        """Prefill sampled this attempt's first token."""
        if self.prefill is None or not self._is_prefill(attempt):
            return self._take_actions()
        fault = self._fault(self.prefill.instance_id, (token_id,), logprobs)
        if fault is not None:
            self._lose_prefill(Event.PREFILL_LOST, fault, cancel=True)
            return self._take_actions()
        self._deliver(position, (token_id,), reason, logprobs)
        if self.delivery.end is not None:
            self._finish(self.delivery.end, decode_ended=False)
        else:
            self._advance(Event.PREFILLED)
        return self._take_actions()

    def prefill_done(self, attempt: int) -> list[Action]:
        """Decode has fetched everything; its commit is under way on its own stream."""
        if self.prefill is not None and self._is_prefill(attempt):
            self.prefill.kv_taken = True
        return self._take_actions()

    def prefill_failed(self, attempt: int, error: BatonError) -> list[Action]:
        """The Prefill stream ended; it matters unless somebody has taken the KV."""
        if self.prefill is None or not self._is_prefill(attempt) or self.prefill.kv_taken:
            return self._take_actions()
        if self.state is not State.DECODING and is_final(error):
            self.prefill = None
            self._fail(error)
        else:
            self._lose_prefill(Event.PREFILL_LOST, error, cancel=False)
        return self._take_actions()

    def decode_refused(
        self, instance_id: InstanceId, attempt: int, error: BatonError
    ) -> list[Action]:
        """Decode or Retarget of `attempt` failed."""
        decode = self.decode
        if decode is None or (decode.instance_id, decode.told_attempt) != (instance_id, attempt):
            return self._take_actions()
        if self.state is State.DECODING:
            # Its stream was faster than its reply, and knows better.
            return self._take_actions()
        if isinstance(error, WrongState) and attempt > decode.placed_attempt:
            # The Retarget lost against the commit; the tokens follow on the stream.
            self._commit(attempt - 1)
        elif is_final(error):
            self._fail(error)
        else:
            self._lose_decode(error, stop=True)
        return self._take_actions()

    def output(self, instance_id: InstanceId, output: Output) -> list[Action]:
        """News from a decode instance."""
        if (decode := self._sender(instance_id, output)) is not None:
            if output.error is not None:
                self._decode_ended(decode, output.error)
            elif output.kv_lost is not None:
                self._lose_kv(decode, output.attempt, output.kv_lost)
            elif fault := self._fault(instance_id, output.token_ids, output.logprobs):
                self._lose_decode(fault, stop=True)
            else:
                self._take_output(decode, output)
        return self._take_actions()

    def instance_lost(self, instance_id: InstanceId, error: BatonError) -> list[Action]:
        """An instance died, or cannot be reached."""
        if self.decode is not None and self.decode.instance_id == instance_id:
            self._lose_decode(error, stop=False)
        prefill = self.prefill
        if prefill is not None and prefill.instance_id == instance_id and not prefill.kv_taken:
            self._lose_prefill(Event.PREFILL_LOST, error, cancel=True)
        return self._take_actions()

    def stop_matched(self) -> list[Action]:
        """A stop string ended the answer."""
        self._finish(FinishReason.STOP, decode_ended=False)
        return self._take_actions()

    def unplaceable(self, error: BatonError) -> list[Action]:
        """No instance came up in time."""
        self._fail(error)
        return self._take_actions()

    def cancelled(self, error: BatonError | None = None) -> list[Action]:
        """The client gave up, or is given up."""
        self._end(Event.CANCELLED, Fail(error or Cancelled("the client cancelled")))
        return self._take_actions()

    def deadline(self) -> list[Action]:
        """The deadline passed."""
        passed = DeadlinePassed(f"{self.delivery.num_tokens} output tokens by the deadline")
        self._end(Event.DEADLINE, Fail(self.wait_error or passed))
        return self._take_actions()

    # --- starting ---------------------------------------------------------------------------

    def _start_prefill(self, instance_id: InstanceId) -> None:
        self.prefill = PrefillSide(instance_id, self.attempt, self.delivery.num_tokens)
        forced = self.delivery.token_ids
        only_first_token = self.delivery.num_left == 1
        if only_first_token:
            self._drop_decode(stop=True)
        self._actions.append(
            StartPrefill(
                instance_id=instance_id,
                attempt=self.attempt,
                output_token_ids=forced,
                only_first_token=only_first_token,
            )
        )
        if self.decode is not None:
            self.decode.told_attempt = self.attempt
            self._actions.append(
                Retarget(
                    instance_id=self.decode.instance_id,
                    attempt=self.attempt,
                    source_id=instance_id,
                    output_token_ids=forced,
                )
            )

    def _start_decode(self, instance_id: InstanceId) -> None:
        assert self.prefill is not None, "decode is placed with or after its prefill"
        self.decode = DecodeSide(instance_id, self.attempt, self.attempt)
        self._actions.append(
            StartDecode(
                instance_id=instance_id,
                attempt=self.attempt,
                source_id=self.prefill.instance_id,
                # As in its KV: what prefill sampled since is not forced but repeated.
                output_token_ids=self.delivery.token_ids[: self.prefill.num_forced],
            )
        )

    # --- tokens -----------------------------------------------------------------------------

    def _sender(self, instance_id: InstanceId, output: Output) -> DecodeSide | None:
        """The decode side, if `output` is of it and of an attempt that still counts."""
        decode = self.decode
        if decode is None or decode.instance_id != instance_id:
            return None
        is_known = decode.placed_attempt <= output.attempt <= decode.told_attempt
        return decode if is_known and output.epoch == self.request.epoch else None

    def _take_output(self, decode: DecodeSide, output: Output) -> None:
        if output.committed or output.token_ids:
            self._commit(output.attempt)
        self._deliver(
            output.first_position, output.token_ids, output.finish_reason, output.logprobs
        )
        is_done = output.finish_reason is not None and self.delivery.end is not None
        self._acknowledge(decode, done=is_done)
        if self.delivery.end is not None:
            self._finish(self.delivery.end, decode_ended=is_done)

    def _deliver(
        self,
        position: int,
        token_ids: tuple[int, ...],
        reason: FinishReason | None,
        logprobs: tuple[TokenLogprobs, ...],
    ) -> None:
        start = self.delivery.num_tokens
        new_ids, new_logprobs = self.delivery.take(position, token_ids, reason, logprobs)
        if new_ids:
            self._actions.append(Deliver(position=start, token_ids=new_ids, logprobs=new_logprobs))

    def _fault(
        self, sender: InstanceId, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> RemoteFault | None:
        """Of a worker whose log-probabilities cannot be matched with its tokens."""
        num_wanted = 0 if self.request.sampling.num_logprobs is None else len(token_ids)
        if len(logprobs) == num_wanted:
            return None
        return RemoteFault(
            f"{sender}: {len(logprobs)} log-probabilities with {len(token_ids)} tokens,"
            f" wanted {num_wanted}"
        )

    def _commit(self, attempt: int) -> None:
        """Decode has the KV of `attempt`; a later prefill, if there is one, is not needed."""
        if not self._advance(Event.COMMITTED) or self.prefill is None:
            return
        if self.prefill.attempt > attempt:
            self._drop_prefill()

    def _acknowledge(self, decode: DecodeSide, *, done: bool) -> None:
        self._actions.append(
            Acknowledge(
                instance_id=decode.instance_id, next_position=self.delivery.num_tokens, done=done
            )
        )

    # --- losses -----------------------------------------------------------------------------

    def _is_prefill(self, attempt: int) -> bool:
        return not self.is_over and self.prefill is not None and self.prefill.attempt == attempt

    def _decode_ended(self, decode: DecodeSide, error: BatonError) -> None:
        self._acknowledge(decode, done=True)
        if is_final(error):
            self.decode = None
            self._fail(error)
        else:
            self._lose_decode(error, stop=False)

    def _lose_kv(self, decode: DecodeSide, attempt: int, reason: KvLostReason) -> None:
        is_waiting = self.state in (State.PREFILLING, State.HANDING_OFF)
        if attempt != decode.told_attempt or not is_waiting or self.prefill is None:
            return
        error_type = KvCorrupt if reason is KvLostReason.CORRUPT else PeerLost
        error = error_type(f"{decode.instance_id} cannot fetch: {reason.value}")
        decode.num_kv_lost += 1
        self._lose_prefill(Event.KV_LOST, error, cancel=True)
        if decode.num_kv_lost > 1 and not self.is_over:
            self._lose_decode(error, stop=True)

    def _lose_prefill(self, event: Event, error: BatonError, *, cancel: bool) -> None:
        assert self.prefill is not None, "only a side that is there can be lost"
        lost = self.prefill
        if cancel:
            self._drop_prefill()
        self.prefill = None
        if self._advance(event):
            self.avoid.add(lost.instance_id)
            self._try_again(error)

    def _lose_decode(self, error: BatonError, *, stop: bool) -> None:
        assert self.decode is not None, "only a side that is there can be lost"
        self.avoid.add(self.decode.instance_id)
        self._drop_decode(stop=stop)
        has_kv = self.prefill is not None and not self.prefill.kv_taken
        was_decoding = self.state is State.DECODING
        self._advance(Event.DECODE_LOST)
        if was_decoding:
            self._drop_prefill()
        elif not has_kv and self._advance(Event.PREFILL_LOST):
            # The lost one had taken it just before.
            self.prefill = None
        self._try_again(error)

    def _try_again(self, error: BatonError) -> None:
        self.losses.append(error)
        if self.num_attempts >= self._max_attempts and not self.is_over:
            cause = f"placed {self.num_attempts} times; last: {error.reason}: {error}"
            self._fail(AttemptsExhausted(cause))

    # --- endings ----------------------------------------------------------------------------

    def _finish(self, reason: FinishReason, *, decode_ended: bool) -> None:
        self._end(Event.STOPPED, Finish(reason), decode_ended=decode_ended)

    def _fail(self, error: BatonError) -> None:
        self._end(Event.REFUSED, Fail(error))

    def _end(self, event: Event, last: Finish | Fail, *, decode_ended: bool = False) -> None:
        if self._advance(event):
            self._drop_prefill()
            self._drop_decode(stop=not decode_ended)
            self._actions.append(last)

    def _drop_prefill(self) -> None:
        if self.prefill is not None and not self.prefill.kv_taken:
            self._actions.append(
                CancelPrefill(instance_id=self.prefill.instance_id, attempt=self.prefill.attempt)
            )
        self.prefill = None

    def _drop_decode(self, *, stop: bool) -> None:
        if self.decode is not None and stop:
            self._actions.append(
                StopDecode(instance_id=self.decode.instance_id, attempt=self.decode.told_attempt)
            )
        self.decode = None
        self.delivery.forget_early()

    def _advance(self, event: Event) -> bool:
        """Walk the table; False when the event is to be dropped."""
        state = LIFECYCLE.advance(self.state, event)
        if state is None:
            return False
        self.state = state
        return True

    def _take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions
