"""Which request kills the instances that serve it: judged by who was in a running step at a death.

One death says little: everybody in a step there is a *suspect* from then on. A suspect that gets
past the place where it was when the instance died (its next token after a prefill, a few more
tokens after a decode step) is none any more: what kills does so each time at the same place. So of
the many innocents of a first death nearly all are cleared within their first steps elsewhere, and
an answer that happens to be hit by two independent failures is not taken for their cause.

When an instance dies with exactly one suspect in a step, that one is *guilty*, and nobody else
becomes suspect: two restarts. With several nobody can tell; all are suspects of one death more.
Therefore suspects are placed *apart*: a suspect looks for an instance that has no other suspect,
for ALONE_S after one death, for LONGER_ALONE_S after more, and goes anywhere then: nobody fails
because it is suspected. A crowd is not held back after its first death: hundreds one after the
other would wait for seconds whenever an instance dies, which is mostly nobody's fault.

Collateral. Whoever shares an instance with a guilty one loses up to two of its placements, and
waits for ALONE_S at most; it is placed anew as after any death. A guilty request costs two
restarts when it was with no more than MAX_CROWD others at its first death, and gets its second
alone; three when it hid in a crowd (the third is alone). An innocent is only ever quarantined when
a second instance dies of something else, while it is the only suspect in a step there, before its
first few tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K")

NUM_TOKENS_TO_CLEAR = 8
"""After a death while decoding. What the dead instance had sampled and not yet sent is decoded
again up to the same place: a frame or two."""
MAX_CROWD = 16
"""Cleared one by one within about ALONE_S on a few instances, if prompts are short."""
ALONE_S = 0.5
LONGER_ALONE_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """How far a request was in a running step."""

    num_tokens: int
    """Delivered."""
    is_prefill: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """Of one request."""

    num_deaths: int
    """That nobody else explains."""
    last: Place
    """At the last of them."""
    num_others: int
    """Who were in a step there too."""

    def is_cleared(self, num_tokens: int) -> bool:
        """Whether so many delivered tokens are past the place of the death."""
        slack = 0 if self.last.is_prefill else NUM_TOKENS_TO_CLEAR
        return num_tokens > self.last.num_tokens + slack

    @property
    def alone_s(self) -> float:
        """For how long it looks for an instance without another suspect."""
        if self.num_deaths > 1:
            return LONGER_ALONE_S
        return ALONE_S if self.num_others <= MAX_CROWD else 0.0


@dataclass(frozen=True, slots=True)
class Judgement(Generic[K]):
    """Of one death."""

    guilty: K | None
    suspects: Mapping[K, Suspicion] = field(default_factory=dict)
    """New, or of one death more; empty when somebody is guilty."""


def judge(in_step: Mapping[K, Place], suspicions: Mapping[K, Suspicion]) -> Judgement[K]:
    """An instance died with these in a step."""
    known = [
        key
        for key, place in in_step.items()
        if key in suspicions and not suspicions[key].is_cleared(place.num_tokens)
    ]
    if len(known) == 1:
        return Judgement(known[0])
    before = {key: suspicions[key].num_deaths for key in known}
    suspects = {
        key: Suspicion(num_deaths=1 + before.get(key, 0), last=place, num_others=len(in_step) - 1)
        for key, place in in_step.items()
    }
    return Judgement(None, suspects)
