"""Law 1 on every architecture: the same tokens however KV is computed, shared, lost and moved."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import pytest

from tests.engine.architectures import CONFIGS, Architecture, Architectures, Comparison
from tests.engine.covering import pairwise_rows
from tests.engine.paged import WHOLE, PagedRequest, Pager
from tests.engine.tiny import random_prompt

NUM_TOKENS = 64
NUM_TOKENS_BEFORE_INTERRUPTION = 20
NUM_STEPS_AWAY = 3
# Neither a multiple of a chunk nor of a block, and over the windows.
PROMPT = random_prompt(90, seed=90)
NUM_SHARED_TOKENS = {"none": 0, "part": 40, "whole": len(PROMPT) - 1}
DONORS = {"part": PROMPT[:40] + random_prompt(30, seed=30), "whole": PROMPT}
NEIGHBOUR_LENGTHS = (3, 17, 33, 50, 64, 71, 100)

COLUMNS: dict[str, Sequence[object]] = {
    "architecture": tuple(CONFIGS),
    "batch": (1, 8),
    "chunk": (7, 64, WHOLE),
    "prefix": tuple(NUM_SHARED_TOKENS),
    "interruption": ("none", "preempted", "swapped"),
    "block_size": (16, 5),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the matrix, without the architecture."""

    batch: int
    chunk: int
    prefix: str
    interruption: str
    block_size: int


class Play:
    """One case played: a request and its neighbours, each joining a step after the last."""

    def __init__(self, architecture: Architecture, case: Case) -> None:
        self.subject = PagedRequest(PROMPT)
        lengths = NEIGHBOUR_LENGTHS[: case.batch - 1]
        self.neighbours = [PagedRequest(random_prompt(n, seed=n)) for n in lengths]
        self._pager = Pager(architecture, case.block_size)
        self._case = case
        self._num_steps = 0

    def run(self) -> None:
        """To the end of all answers."""
        everyone = [self.subject, *self.neighbours]
        if self._case.prefix != "none":
            self._hit_prefix()
        while len(self.subject.output) < NUM_TOKENS_BEFORE_INTERRUPTION:
            self._step(everyone)
        self._interrupt()
        while not all(_ended(request) for request in everyone):
            self._step(everyone)
        for request in everyone:
            self._pager.drop(request)
        assert self._pager.pool.num_held == 0

    def _hit_prefix(self) -> None:
        donor = PagedRequest(DONORS[self._case.prefix], forgets=False)
        while not donor.output:
            self._pager.step([donor], [self._case.chunk])
        num_shared = self._pager.share(self.subject, donor)
        assert num_shared == NUM_SHARED_TOKENS[self._case.prefix]
        self._pager.drop(donor)

    def _interrupt(self) -> None:
        if self._case.interruption == "preempted":
            self._pager.drop(self.subject)
        elif self._case.interruption == "swapped":
            self._pager.swap_out(self.subject)
        for _ in range(NUM_STEPS_AWAY):
            self._step(self.neighbours)
        if self._case.interruption == "swapped":
            self._pager.swap_in(self.subject)

    def _step(self, requests: Sequence[PagedRequest]) -> None:
        self._num_steps += 1
        joined = requests[: self._num_steps]
        if running := [request for request in joined if not _ended(request)]:
            self._pager.step(running, [self._case.chunk] * len(running))


def _ended(request: PagedRequest) -> bool:
    return len(request.output) == NUM_TOKENS


def compare_case(architecture: Architecture, case: Case) -> Comparison:
    """All answers of one case."""
    play = Play(architecture, case)
    play.run()
    compared = Comparison()
    for request in (play.subject, *play.neighbours):
        compared += architecture.compare(request.prompt, request.output)
    problems = tuple(f"{case}: {problem}" for problem in compared.problems)
    return Comparison(compared.num_tokens, compared.num_ties, problems)


def compare_cases(architecture: Architecture, cases: Iterable[Case]) -> str:
    """Assert law 1 over all; the line to print."""
    started_at_s = time.monotonic()
    each = [compare_case(architecture, case) for case in cases]
    total = sum(each, Comparison())
    total.check()
    return (
        f"{architecture.name}: {len(each)} cases, {total.num_tokens} tokens equal to generate(), "
        f"{total.num_ties} ties, {time.monotonic() - started_at_s:.1f} s"
    )


def cases_of(rows: Iterable[tuple[object, ...]]) -> dict[str, list[Case]]:
    """Rows of the columns above, by architecture."""
    cases: dict[str, list[Case]] = {name: [] for name in CONFIGS}
    for name, *values in rows:
        cases[str(name)].append(Case(*values))  # type: ignore[arg-type]
    return cases


@pytest.mark.parametrize("name", CONFIGS)
def test_pairwise(architectures: Architectures, name: str) -> None:
    cases = cases_of(pairwise_rows(tuple(COLUMNS.values())))[name]
    print(compare_cases(architectures[name], cases))


@pytest.mark.matrix
@pytest.mark.timeout(1200)  # 108 cases of up to a second on one core
@pytest.mark.parametrize("name", CONFIGS)
def test_full(architectures: Architectures, name: str) -> None:
    print(compare_cases(architectures[name], cases_of(product(*COLUMNS.values()))[name]))


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_worth_comparing(architectures: Architectures, name: str) -> None:
    """They do not repeat themselves, and one token's wrong KV changes them."""
    architecture = architectures[name]
    assert len(set(architecture.answer(PROMPT, NUM_TOKENS))) > NUM_TOKENS // 4
    pager, request = Pager(architecture, block_size=16), PagedRequest(PROMPT)
    pager.step([request], [WHOLE])
    block, offset = divmod(len(PROMPT) - 20, 16)
    pager.cache.data[:, :, request.block_ids[block] * 16 + offset] += 3.0
    while not _ended(request):
        pager.step([request], [WHOLE])
    assert architecture.compare(PROMPT, request.output).problems


@pytest.mark.parametrize("name", CONFIGS)
def test_neighbours_gone_wrong_change_nothing(architectures: Architectures, name: str) -> None:
    """All their KV turns NaN, and so does what they compute in the steps they share with us."""
    architecture = architectures[name]
    pager, request = Pager(architecture, block_size=16), PagedRequest(PROMPT)
    neighbours = [PagedRequest(random_prompt(n, seed=n)) for n in NEIGHBOUR_LENGTHS]
    batch = [*neighbours[:3], request, *neighbours[3:]]
    while not _ended(request):
        pager.step(batch, [40] * len(batch))
        for block_id in (block_id for other in neighbours for block_id in other.block_ids):
            pager.pool.poison(block_id)
    architecture.compare(PROMPT, request.output).check()
