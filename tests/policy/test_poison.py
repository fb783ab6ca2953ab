"""Who is guilty of a death: single judgements by table, then a cluster with one poison in it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.poison import (
    ALONE_S,
    LONGER_ALONE_S,
    MAX_CROWD,
    NUM_TOKENS_TO_CLEAR,
    Judgement,
    Place,
    Suspicion,
    judge,
)

PREFILL = Place(0, is_prefill=True)


def decode(num_tokens: int) -> Place:
    return Place(num_tokens, is_prefill=False)


def suspicion(last: Place = PREFILL, num_deaths: int = 1, num_others: int = 0) -> Suspicion:
    return Suspicion(num_deaths=num_deaths, last=last, num_others=num_others)


DEATHS = [
    # id, in a step there, suspicions before, guilty, suspects of so many deaths after
    ("nobody was there", {}, {}, None, {}),
    ("one, for the first time", {"a": PREFILL}, {}, None, {"a": 1}),
    ("one, for the second time", {"a": PREFILL}, {"a": suspicion()}, "a", {}),
    ("others are not to blame", {"a": PREFILL, "b": decode(5)}, {"a": suspicion()}, "a", {}),
    (
        "two suspects: nobody can tell",
        {"a": PREFILL, "b": PREFILL, "c": PREFILL},
        {"a": suspicion(), "b": suspicion()},
        None,
        {"a": 2, "b": 2, "c": 1},
    ),
    ("one that got past its place", {"a": decode(1)}, {"a": suspicion()}, None, {"a": 1}),
    (
        "one that has not, though it decoded",
        {"a": decode(5 + NUM_TOKENS_TO_CLEAR)},
        {"a": suspicion(decode(5))},
        "a",
        {},
    ),
    (
        "one that has",
        {"a": decode(6 + NUM_TOKENS_TO_CLEAR)},
        {"a": suspicion(decode(5))},
        None,
        {"a": 1},
    ),
    ("a suspect that was elsewhere", {"b": PREFILL}, {"a": suspicion()}, None, {"b": 1}),
]


@pytest.mark.parametrize(
    ("there", "before", "guilty", "deaths"), [d[1:] for d in DEATHS], ids=[d[0] for d in DEATHS]
)
def test_one_death(
    there: dict[str, Place],
    before: dict[str, Suspicion],
    guilty: str | None,
    deaths: dict[str, int],
) -> None:
    got = judge(there, before)
    assert got.guilty == guilty
    assert {key: s.num_deaths for key, s in got.suspects.items()} == deaths
    assert all(s.last == there[key] for key, s in got.suspects.items())


def test_how_long_a_suspect_looks_for_a_place_of_its_own() -> None:
    assert suspicion(num_others=MAX_CROWD).alone_s == ALONE_S
    assert suspicion(num_others=MAX_CROWD + 1).alone_s == 0.0
    assert suspicion(num_others=MAX_CROWD + 1, num_deaths=2).alone_s == LONGER_ALONE_S


class Cluster:
    """Instances that step in turn; one request kills wherever it reaches its place."""

    def __init__(self, num_instances: int, num_others: int, fatal_at: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.num_instances = num_instances
        self.fatal_at = fatal_at
        self.num_tokens = dict.fromkeys(range(num_others + 1), 0)
        """Request 0 is the poison. Its fatal step comes after `fatal_at` tokens."""
        self.num_tokens[0] = max(0, fatal_at - self.rng.randrange(NUM_TOKENS_TO_CLEAR))
        self.suspicions: dict[int, Suspicion] = {}
        self.guilty: list[int] = []
        self.num_deaths = 0

    def run(self) -> None:
        where = dict.fromkeys(self.num_tokens, 0)
        self.step(where)
        for _ in range(100):
            if self.guilty:
                return
            self.step(self.placed())
        raise AssertionError("never found")

    def placed(self) -> dict[int, int]:
        """As the router does; who finds no place of its own waits for the next round."""
        where: dict[int, int] = {}
        for key in self.rng.sample(sorted(self.num_tokens), len(self.num_tokens)):
            found = set(range(self.num_instances))
            if key in self.suspicions and self.suspicions[key].alone_s:
                found -= {where[other] for other in where if other in self.suspicions}
            if found:
                where[key] = self.rng.choice(sorted(found))
        return where

    def step(self, where: dict[int, int]) -> None:
        for instance in range(self.num_instances):
            there = [key for key in where if where[key] == instance]
            if 0 in there and self.num_tokens[0] >= self.fatal_at:
                self.die(there)
            else:
                for key in there:
                    self.progress(key)

    def progress(self, key: int) -> None:
        self.num_tokens[key] += 1 if key == 0 else NUM_TOKENS_TO_CLEAR + 1
        held = self.suspicions.get(key)
        if held is not None and held.is_cleared(self.num_tokens[key]):
            del self.suspicions[key]

    def die(self, there: list[int]) -> None:
        self.num_deaths += 1
        places = {key: decode(self.num_tokens[key]) for key in there}
        judgement: Judgement[int] = judge(places, self.suspicions)
        self.suspicions.update(judgement.suspects)
        if judgement.guilty is not None:
            self.guilty.append(judgement.guilty)


@settings(max_examples=200)
@given(
    num_instances=st.integers(1, 6),
    num_others=st.integers(0, 60),
    fatal_at=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_the_poison_is_found_and_nobody_else(
    num_instances: int, num_others: int, fatal_at: int, seed: int
) -> None:
    cluster = Cluster(num_instances, num_others, fatal_at, seed)
    # Everybody is on the first one when it dies for the first time.
    cluster.num_tokens[0] = fatal_at
    cluster.run()
    assert cluster.guilty == [0]
    assert cluster.num_deaths <= (2 if num_others <= MAX_CROWD else 3)
