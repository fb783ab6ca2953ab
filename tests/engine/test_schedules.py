"""Law 1 over random schedules: whatever is done to KV, the tokens are the oracle's."""

from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.architectures import Architectures, Comparison
from tests.engine.paged import PagedRequest, Pager
from tests.engine.tiny import random_prompt

NUM_TOKENS = 16
STEM = random_prompt(80, seed=80)
"""What the prompts have in common: longer than the windows."""
MAX_EVENTS = 12

prompts = st.builds(
    lambda num_shared, length, seed: STEM[:num_shared] + random_prompt(length, seed),
    num_shared=st.sampled_from([0, 16, 37, 60, 80]),
    length=st.sampled_from([1, 5, 23]),
    seed=st.integers(0, 2),
)


@dataclass(slots=True)
class Schedule:
    """Draws what happens, as long as anybody has tokens to go."""

    data: st.DataObject
    pager: Pager
    requests: list[PagedRequest]
    num_events: int = 0

    def run(self) -> None:
        """To the end of all answers."""
        while running := [r for r in self.requests if len(r.output) < NUM_TOKENS]:
            chosen = self.data.draw(st.lists(st.sampled_from(running), min_size=1, unique_by=id))
            if self.num_events < MAX_EVENTS:
                self._event(self.data.draw(st.sampled_from(self.requests)))
            for request in chosen:
                self._make_ready(request)
            self.pager.step(chosen, [self.data.draw(st.integers(1, 60)) for _ in chosen])

    def _event(self, request: PagedRequest) -> None:
        self.num_events += 1
        if bool(request.block_ids) and self.data.draw(st.booleans()):
            self.pager.swap_out(request)
        else:
            self.pager.drop(request)

    def _make_ready(self, request: PagedRequest) -> None:
        """Back from the host; or, if there is no KV, with what another one's can give."""
        if request.swapped is not None:
            self.pager.swap_in(request)
        elif not request.block_ids:
            donor = self.data.draw(st.sampled_from(self.requests))
            if donor is not request:
                self.pager.share(request, donor)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_schedule_gives_the_oracles_tokens(
    architectures: Architectures, data: st.DataObject
) -> None:
    architecture = architectures[data.draw(st.sampled_from(["llama", "mistral", "gemma3"]))]
    pager = Pager(architecture, block_size=data.draw(st.sampled_from([5, 16])))
    requests = [PagedRequest(p) for p in data.draw(st.lists(prompts, min_size=1, max_size=4))]
    Schedule(data, pager, requests).run()
    each = [architecture.compare(request.prompt, request.output) for request in requests]
    sum(each, Comparison()).check()
    for request in requests:
        pager.drop(request)
    assert pager.pool.num_held == 0
