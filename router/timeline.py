"""When one choice's tokens left the router, and what the workers said of their share."""

from dataclasses import dataclass, field

from core import slo
from core.ids import InstanceId
from core.timing import HandoffTiming, PrefillTiming
from router.events import RequestTiming
from router.written import WrittenTokens


@dataclass(slots=True, kw_only=True)
class Timeline:
    """Filled in as things happen; moments on the router's clock."""

    arrived_at_s: float
    written: WrittenTokens | None = None
    """Counts them together with those of all other choices."""
    prefill_called_at_s: float | None = None
    """The first time."""
    prefill_last_called_at_s: float | None = None
    """The time that brought the first token, once it is there: attempts before it were lost."""
    first_token_at_s: float | None = None
    second_token_at_s: float | None = None
    last_token_at_s: float = 0.0
    num_tokens: int = 0
    num_attempts: int = 0
    prefill: PrefillTiming = field(default_factory=PrefillTiming)
    handoff: HandoffTiming = field(default_factory=HandoffTiming)
    prefill_instance_id: InstanceId | None = None
    decode_instance_id: InstanceId | None = None

    def called(self, now_s: float) -> None:
        """A Prefill call was made; the first one ends the router's queue."""
        if self.prefill_called_at_s is None:
            self.prefill_called_at_s = now_s
        if self.prefill_instance_id is None:
            self.prefill_last_called_at_s = now_s

    def sampled(self, instance_id: InstanceId, timing: PrefillTiming) -> None:
        """A prefill sampled; only who wrote the answer's first token counts."""
        if self.prefill_instance_id is None:
            self.prefill_instance_id, self.prefill = instance_id, timing

    def handed_over(self, instance_id: InstanceId, timing: HandoffTiming | None) -> None:
        """Decode wrote; the first handoff made the first gap, the last instance the rest."""
        self.decode_instance_id = instance_id
        if timing is not None and self.handoff == HandoffTiming():
            self.handoff = timing

    def left(self, num_tokens: int, now_s: float) -> None:
        """So many more tokens were given to the client's connection."""
        if not num_tokens:
            return
        if self.written is not None:
            gap_s = None if self.first_token_at_s is None else now_s - self.last_token_at_s
            self.written.wrote(num_tokens, gap_s)
        if self.first_token_at_s is None:
            self.first_token_at_s = now_s
        if self.second_token_at_s is None and self.num_tokens + num_tokens > 1:
            self.second_token_at_s = now_s
        self.num_tokens += num_tokens
        self.last_token_at_s = now_s

    def timing(self) -> RequestTiming:
        """The figures, as core.slo defines them."""
        called_at_s = self.prefill_called_at_s
        queue_s = 0.0 if called_at_s is None else called_at_s - self.arrived_at_s
        moments = self._moments()
        return RequestTiming(
            ttft_s=slo.ttft_s(moments) if moments else 0.0,
            router_queue_s=queue_s,
            prefill=self.prefill,
            first_gap_s=(slo.first_gap_s(moments) or 0.0) if moments else 0.0,
            handoff=self.handoff,
            tpot_s=(slo.tpot_s(moments) or 0.0) if moments else 0.0,
            e2e_s=slo.e2e_s(moments) if moments else 0.0,
            num_attempts=self.num_attempts,
            prefill_instance_id=self.prefill_instance_id or "",
            decode_instance_id=self.decode_instance_id or "",
        )

    def _moments(self) -> slo.Moments | None:
        if self.first_token_at_s is None:
            return None
        return slo.Moments(
            arrived_at_s=self.arrived_at_s,
            first_token_at_s=self.first_token_at_s,
            second_token_at_s=self.second_token_at_s,
            last_token_at_s=self.last_token_at_s,
            num_output_tokens=self.num_tokens,
        )
