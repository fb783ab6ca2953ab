"""What the router learns as it goes: how fast instances are, and what moving KV costs."""

from core.timing import HandoffTiming, PrefillTiming
from policy.correction import Mean
from policy.latency import LatencyModel, decode_s, prefill_s
from policy.table import Links, Phase
from router.fleet import Fleet

OBSERVE_EVERY_S = 0.1
"""Decode steps of one instance: more often would cost more than it tells."""
MAX_STEP_S = 5.0
"""A longer gap between two frames is no step."""
ASSUMED = Links(same_host_s_per_token=2e-6, other_host_s_per_token=1e-5, handoff_s=0.005)
"""Until the first handoff was seen."""


class Observed:
    """Writes the fleet's corrections; owns what was learned of links."""

    def __init__(self, fleet: Fleet, model: LatencyModel) -> None:
        self.model = model
        """What predictions start from."""
        self._fleet = fleet
        self._handoff = Mean()
        self._per_token = {True: Mean(), False: Mean()}
        self._last_step_at_s: dict[int, float] = {}
        self._last_seen_at_s: dict[int, float] = {}

    @property
    def links(self) -> Links:
        """What moving KV costs, as far as is known."""
        near, far = self._per_token[True], self._per_token[False]
        return Links(
            near.value if near.num_seen else ASSUMED.same_host_s_per_token,
            far.value if far.num_seen else ASSUMED.other_host_s_per_token,
            self._handoff.value if self._handoff.num_seen else ASSUMED.handoff_s,
        )

    def prefilled(self, row: int, num_input_tokens: int, timing: PrefillTiming) -> None:
        """A prompt was computed."""
        hits = min(timing.num_hit_tokens + timing.num_fetched_tokens, num_input_tokens - 1)
        fresh = num_input_tokens - hits
        pairs = fresh * hits + 0.5 * fresh * (fresh + 1)
        predicted_s = float(prefill_s(self.model, fresh, pairs))
        self._fleet.observed(row, Phase.PREFILL, predicted_s, timing.compute_s)

    def stepped(self, row: int, batch: int, num_context_tokens: int, now_s: float) -> None:
        """Tokens of so many answers came at once: a step ended."""
        before_s = self._last_step_at_s.get(row)
        self._last_step_at_s[row] = now_s
        if before_s is None or now_s - before_s > MAX_STEP_S:
            return
        if now_s - self._last_seen_at_s.get(row, 0.0) >= OBSERVE_EVERY_S:
            self._last_seen_at_s[row] = now_s
            predicted_s = float(decode_s(self.model, batch, num_context_tokens))
            self._fleet.observed(row, Phase.DECODE, predicted_s, now_s - before_s)

    def handed_over(self, source: int, sink: int, timing: HandoffTiming) -> None:
        """KV was moved."""
        self._handoff = self._handoff.after(timing.exposed_s)
        num_moved = timing.num_kv_tokens - timing.num_reused_tokens
        if num_moved > 0 and source != sink:
            host = self._fleet.table.host
            is_near = bool(host[source] == host[sink])
            self._per_token[is_near] = self._per_token[is_near].after(
                timing.streaming_s / num_moved
            )

    def forget(self, row: int) -> None:
        """The row is nobody's."""
        self._last_step_at_s.pop(row, None)
        self._last_seen_at_s.pop(row, None)
