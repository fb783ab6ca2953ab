"""Which tokens the grammars of a step's requests allow."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from core.request import Grammar
from engine.batch import SampleSpec
from text.grammar import GrammarCompiler, Matcher, PackedMask

MAX_STATES = 512
"""Requests followed, the latest ones; more than run at once. A forgotten one is read again."""


@dataclass(slots=True)
class _State:
    """One request's place in its grammar."""

    grammar: Grammar
    matcher: Matcher
    token_ids: list[int] = field(default_factory=list)
    """Those it has read."""

    def follows(self, grammar: Grammar, output: Sequence[int]) -> bool:
        """Whether reading on leads to `output`."""
        return grammar == self.grammar and list(output[: len(self.token_ids)]) == self.token_ids


class GrammarStates:
    """Follows requests through their grammars; used by the thread that computes steps.

    A mask is a function of the grammar and the output tokens, forced ones included: what is kept
    only spares reading them again, so a request that comes from elsewhere goes on as it would have
    there. Tokens that its grammar refuses (a client may resume with any) leave nothing but the end.
    """

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._states: OrderedDict[str, _State] = OrderedDict()

    def mask(self, key: str, spec: SampleSpec) -> PackedMask | None:
        """What may come after the output tokens of request `key`; None when anything may."""
        if (grammar := spec.sampling.grammar) is None:
            return None
        state = self._states.get(key)
        if state is None or not state.follows(grammar, spec.output_token_ids):
            state = _State(grammar, self._compiler.compile(grammar))
            self._states[key] = state
        new = list(spec.output_token_ids[len(state.token_ids) :])
        state.matcher.consume(new)
        state.token_ids += new
        self._states.move_to_end(key)
        if len(self._states) > MAX_STATES:
            self._states.popitem(last=False)
        return state.matcher.mask()
