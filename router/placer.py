"""From the links to one request's instances: the shell around policy.placement."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from core.ids import Fingerprint, InstanceId
from core.member import Role
from policy.placement import Need, Phase, PickState, place
from router.link import InstanceLink
from router.membership import Membership, fingerprint_code, table_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one choice has to have placed."""

    phases: frozenset[Phase]
    model: str
    num_tokens: int
    """Of context at most."""
    num_input_tokens: int
    """To prefill now."""
    fingerprint: Fingerprint | None
    """None before anything of it was placed."""
    avoid: frozenset[InstanceId]
    source_id: InstanceId | None
    """Where its KV is or will be."""
    prefer_id: InstanceId | None = None
    """Where another choice of the request was prefilled."""


class Placer:
    """Keeps the pick states; one per router."""

    def __init__(self, membership: Membership, policy: str, seed: int) -> None:
        self._membership = membership
        self._policy = policy
        self._states = {phase: PickState(seed + phase) for phase in Phase}

    def place(self, wanted: Wanted) -> dict[Phase, InstanceLink]:
        """An instance for every wanted phase. Raises NoInstance or Saturated."""
        found: dict[Phase, InstanceLink] = {}
        fingerprint = wanted.fingerprint
        for phase in sorted(wanted.phases):
            found[phase] = self._place_one(phase, replace(wanted, fingerprint=fingerprint))
            # Prefill and decode of one request are of one fingerprint, always.
            fingerprint = found[phase].member.fingerprint
            wanted = replace(wanted, source_id=found[phase].member.instance_id)
        for phase, link in found.items():
            _expect(link, phase, wanted.num_input_tokens)
        return found

    def _place_one(self, phase: Phase, wanted: Wanted) -> InstanceLink:
        links = self._membership.links
        code = None
        if wanted.fingerprint is not None:
            code = fingerprint_code(links, wanted.fingerprint)
        need = Need(
            phase=phase,
            num_tokens=wanted.num_tokens,
            fingerprint=code,
            avoid=_rows(links, wanted.avoid),
            prefer=_row(links, _preferred(links, phase, wanted)),
        )
        decision = place(table_of(links, wanted.model), need, self._policy, self._states[phase])
        self._states[phase] = decision.state
        link = links[decision.row]
        logger.debug("placed %s on %s: %s", phase.name, link.member.instance_id, decision.reasons)
        return link


def _rows(links: Iterable[InstanceLink], names: frozenset[InstanceId]) -> frozenset[int]:
    return frozenset(row for row, link in enumerate(links) if link.member.instance_id in names)


def _row(links: Iterable[InstanceLink], name: InstanceId | None) -> int | None:
    return next((row for row, link in enumerate(links) if link.member.instance_id == name), None)


def _preferred(links: Iterable[InstanceLink], phase: Phase, wanted: Wanted) -> InstanceId | None:
    """For decode a mixed instance that prefills: a handoff to itself moves nothing."""
    if phase is Phase.PREFILL:
        return wanted.prefer_id
    source = next((link for link in links if link.member.instance_id == wanted.source_id), None)
    is_mixed = source is not None and source.member.role is Role.MIXED
    return wanted.source_id if is_mixed else None


def _expect(link: InstanceLink, phase: Phase, num_input_tokens: int) -> None:
    """Count what was just placed until the instance's next report counts it.

    Without this all requests between two reports would go to the same instance.
    """
    load = link.load
    if phase is Phase.PREFILL:
        link.load = replace(
            load,
            num_prefilling=load.num_prefilling + 1,
            num_pending_prompt_tokens=load.num_pending_prompt_tokens + num_input_tokens,
        )
    else:
        link.load = replace(load, num_incoming=load.num_incoming + 1)
