"""From the view to one request's instances: the shell around policy.placement."""

import logging
from dataclasses import dataclass

from core.config import RouterConfig
from core.ids import Fingerprint, InstanceId
from core.request import Request
from core.settings import Settings
from policy.admission import Forecast, forecast, num_free_answers
from policy.mixed_pool import Thresholds, leaving_helpers, next_helper
from policy.placement import Criteria, Decision, Need, PickState, able_rows, place
from policy.predict import prefill_wait_s, room_wait_s, step_after_s
from policy.table import Ask, Floats, Ints, Phase, Weights
from router.link import InstanceLink
from router.membership import Membership
from router.outliers import Outliers
from router.prefix_index import PromptNames

logger = logging.getLogger(__name__)


BACKGROUND_WORK = 50.0
"""`Weights.work` of requests below normal priority: they have time, so they go where they cost the
least, unless they would wait 50 times as long as that saves."""
HELP_EVERY_S = 0.05
"""Who helps is looked at as often as reports come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one choice has to have placed."""

    phases: frozenset[Phase]
    model: str
    num_tokens: int
    """Of context at most."""
    input_token_ids: tuple[int, ...]
    """To prefill now."""
    tenant: str
    fingerprint: Fingerprint | None
    """None before anything of it was placed."""
    avoid: frozenset[InstanceId]
    source_id: InstanceId | None
    """Where its KV is or will be."""
    prefer_id: InstanceId | None = None
    """Where another choice of the request was prefilled."""
    sink_id: InstanceId | None = None
    """Where its KV goes, when only a prefill is wanted."""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Placed:
    """Who takes one phase, and why."""

    link: InstanceLink
    reasons: tuple[str, ...]
    """How many were left after each filter, the winner's score, and the next best ones'."""


class Placer:
    """Keeps the pick states and who helps; one per router."""

    def __init__(
        self,
        membership: Membership,
        outliers: Outliers,
        prompts: PromptNames,
        config: RouterConfig,
        seed: int,
    ) -> None:
        self._membership = membership
        self._outliers = outliers
        self._view = membership.view
        self._prompts = prompts
        self._config = config
        self._policy, self._weights = config.policy, Weights()
        self._thresholds = Thresholds(config.help_above_s, config.help_above_s / 4)
        self._states = {phase: PickState(seed + phase) for phase in Phase}
        self._helped_at_s = dict.fromkeys(Phase, -HELP_EVERY_S)

    def use(self, settings: Settings) -> None:
        """From the next placement on."""
        policy = settings.policy
        self._policy = policy.name or self._config.policy
        self._weights = Weights(work=policy.work, disturbance=policy.disturbance)

    def place(self, wanted: Wanted) -> dict[Phase, Placed]:
        """An instance for every wanted phase. Raises NoInstance or Saturated."""
        fleet = self._view.fleet
        source = None if wanted.source_id is None else fleet.rows.get(wanted.source_id)
        need = self._need_of(wanted.model, wanted.num_tokens)._replace(
            num_input_tokens=len(wanted.input_token_ids),
            hit_tokens=self._hits(wanted),
            fingerprint=fleet.fingerprint_code(wanted.fingerprint),
            avoid=frozenset(fleet.rows[name] for name in wanted.avoid if name in fleet.rows),
            source=source,
            prefer=None if wanted.prefer_id is None else fleet.rows.get(wanted.prefer_id),
        )
        found, by = dict[Phase, Decision](), self.criteria(wanted.priority)
        for phase in sorted(wanted.phases):
            if phase is Phase.DECODE:
                # A handoff to itself moves nothing.
                need = need._replace(phase=phase, prefer=need.source)
            partner_id = wanted.sink_id if need.source is None else fleet.name(need.source)
            need = need._replace(ejected=self._outliers.rows(partner_id))
            found[phase] = self._pick(need, by)
            row = found[phase].row
            # Prefill and decode of one request are of one fingerprint, always.
            code = int(fleet.table.fingerprint[row])
            need = need._replace(fingerprint=code, source=row)
        return {phase: self._take(phase, decision, need) for phase, decision in found.items()}

    def forecast(self, request: Request) -> Forecast | None:
        """When its first token can be expected; None while nothing was seen to tell by."""
        fleet, observed = self._view.fleet, self._view.observed
        if not fleet.has_seen(Phase.PREFILL):
            return None
        prompt = self._prompts.of(request.tenant, request.prompt_token_ids)
        hits = self._view.index.hit_tokens(prompt, len(fleet.table.role))
        num_tokens = request.num_prompt_tokens + request.stop.max_tokens
        ask = Ask(request.num_prompt_tokens, num_tokens, hits, -1)
        able = able_rows(fleet.table, self._need_of(request.model, num_tokens))
        return forecast(observed.model, fleet.table, able, ask)

    def num_free_answers(self, target_s: float) -> int | None:
        """That fit a TPOT target, over all models; None while nothing was seen to tell by."""
        fleet = self._view.fleet
        if not fleet.has_seen(Phase.DECODE):
            return None
        able = fleet.table.alive & ~fleet.table.draining
        return num_free_answers(self._view.observed.model, fleet.table, able, target_s)

    def criteria(self, priority: int = 0) -> Criteria:
        """By what is judged now."""
        observed, weights = self._view.observed, self._weights
        if priority < 0:
            weights = weights._replace(work=max(weights.work, BACKGROUND_WORK))
        return Criteria(
            policy=self._policy,
            model=observed.model,
            links=observed.links,
            weights=weights,
            max_local_prefill_tokens=self._config.max_local_prefill_tokens,
        )

    def _need_of(self, model: str, num_tokens: int) -> Need:
        code = self._view.fleet.code("model", model)
        return Need(phase=Phase.PREFILL, num_tokens=num_tokens, model=code)

    def _pick(self, need: Need, by: Criteria) -> Decision:
        self._adjust_help(need)
        table, state = self._view.fleet.table, self._states[need.phase]
        decision = place(table, need, by, state)
        self._states[need.phase] = decision.state
        logger.debug("placed %s on row %d: %s", need.phase.name, decision.row, decision.reasons)
        return decision

    def _take(self, phase: Phase, decision: Decision, need: Need) -> Placed:
        row, name = decision.row, self._view.fleet.name
        link = self._membership.get(name(row))
        assert link is not None, "a row in use has its link"
        hits = 0 if need.hit_tokens is None else int(need.hit_tokens[row])
        link.sight.expect(phase, max(1, need.num_input_tokens - hits))
        others = (f"next {name(other)}: {score:.3g}" for other, score in decision.others)
        known = (f"{hits} of {need.num_input_tokens} tokens cached",) if hits else ()
        return Placed(link, (*decision.reasons, *others, *known))

    def _hits(self, wanted: Wanted) -> Ints:
        prompt = self._prompts.of(wanted.tenant, wanted.input_token_ids)
        return self._view.index.hit_tokens(prompt, len(self._view.fleet.table.role))

    # --- mixed pool -------------------------------------------------------------------------

    def _adjust_help(self, need: Need) -> None:
        """Let one more instance help, or those leave that are not needed here any more."""
        now_s = self._view.clock.now_s()
        if now_s - self._helped_at_s[need.phase] < HELP_EVERY_S:
            return
        self._helped_at_s[need.phase] = now_s
        table, phase = self._view.fleet.table, need.phase
        able = able_rows(table, need._replace(avoid=frozenset()))
        waits_s = self._waits_s(need)
        if table.helps.any():
            leaving = leaving_helpers(table, able, phase, waits_s, self._thresholds)
            for row in leaving.nonzero()[0].tolist():
                self._help(row, helps=False)
        if (helper := next_helper(table, able, phase, waits_s, self._thresholds)) >= 0:
            self._help(helper, helps=True)

    def _waits_s(self, need: Need) -> Floats:
        table, model = self._view.fleet.table, self._view.observed.model
        if need.phase is Phase.PREFILL:
            return prefill_wait_s(model, table)
        ask = need.ask(len(table.role))
        return room_wait_s(table, ask, step_after_s(model, table, ask))

    def _help(self, row: int, *, helps: bool) -> None:
        name = self._view.fleet.name(row)
        logger.info("instance %s %s", name, "helps the other pool" if helps else "helps no more")
        self._view.fleet.help(row, helps=helps)
