"""Runs seeds: one with its checks, or many over all cores."""

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from unittest.mock import patch

from core.ids import HandoffId
from core.lifecycle import Event, State
from tests.simulation import coverage
from tests.simulation.checks import RuleBroken, check_idle
from tests.simulation.content import Spec
from tests.simulation.decode_node import DecodeNode
from tests.simulation.faults import Faults
from tests.simulation.loop import Loop
from tests.simulation.network import Network
from tests.simulation.prefill_node import PrefillNode
from tests.simulation.profile import MIN_EVENTS, OVERLOAD_REQUESTS, SLACK, TICK_S
from tests.simulation.requests import Request
from tests.simulation.router_model import Router
from tests.simulation.world import Parts, World

REAL = Parts()
OWN, SHARED = 500_000, 900_000
"""First token ids of what is a prompt's own, and of what several begin with."""
NUM_FAMILIES = 2
MAX_PROMPT = 8
NUM_TRACED = 60
"""Events before the end that a failing seed shows."""


class Simulation:
    """One seed: its world, its instances, its clients."""

    def __init__(self, seed: int, parts: Parts, trace: list[str] | None = None) -> None:
        world = self.world = World(seed, parts, trace)
        network = Network(world)
        is_overload = world.profile.is_overload
        self.prefills = [
            PrefillNode(world, network, f"prefill{i}", world.ticks(6, 7 if is_overload else 10))
            for i in range(world.ticks(2, 4))
        ]
        self.decodes = [
            DecodeNode(world, network, f"decode{i}", world.ticks(6, 7 if is_overload else 11))
            for i in range(world.ticks(2, 4))
        ]
        self.router = Router(world, network)
        self.router.placing.prefills, self.router.placing.decodes = self.prefills, self.decodes
        for node in (*self.prefills, *self.decodes):
            node.router = self.router
        Faults(world, network, self.router, self.prefills, self.decodes)
        self._arrive()

    def __str__(self) -> str:
        return "clients"

    def run(self) -> None:
        """To the end of time; then nothing may be left."""
        with running(self.world.loop):
            try:
                self.world.run()
            finally:
                for decode in self.decodes:
                    decode.stop_waiting()
        for node in (*self.prefills, *self.decodes):
            check_idle(node.name, node.allocator)
            if node.num_remembered():
                raise RuleBroken(f"{node.name} still knows {node.num_remembered()} handoffs")
        for request in self.router.requests:
            self._check_end(request)
        if self.world.profile.is_overload:
            if not any(r.state is State.FINISHED for r in self.router.requests):
                raise RuleBroken("under overload nothing finished")
            self.world.seen["overload"] += 1

    def _check_end(self, request: Request) -> None:
        deadline_s, profile = request.spec.deadline_s + SLACK * TICK_S, self.world.profile
        if request.ended_at_s is None or request.ended_at_s > deadline_s:
            raise RuleBroken(f"{request} has not ended in time")
        if profile.is_calm and request.state is not State.FINISHED:
            raise RuleBroken(f"{request} did not finish, though nothing went wrong")
        if profile.is_overload and request.ended_by not in (Event.STOPPED, Event.REFUSED):
            raise RuleBroken(f"{request} neither finished nor was refused: {request.ended_by}")
        num_missing = request.spec.num_wanted_tokens - len(request.delivered)
        if request.state is State.FINISHED and num_missing:
            raise RuleBroken(f"{request} finished without {num_missing} tokens")

    def _arrive(self) -> None:
        """The next request; more come until the schedule is long enough."""
        world, router = self.world, self.router
        profile, index, num_tokens = world.profile, len(router.requests), world.ticks(1, 5)
        is_cut = world.random() < profile.stop_string
        in_hurry = world.random() < profile.hurry
        prompt, after = self._prompt(index)
        deadline = world.ticks(5, 300) if in_hurry else profile.deadline * world.ticks(1, 4)
        spec = Spec(
            index=index,
            handoff_id=HandoffId(f"h{index}"),
            prompt=prompt,
            num_output_tokens=num_tokens,
            num_wanted_tokens=world.ticks(1, num_tokens + 1) if is_cut else num_tokens,
            deadline_s=world.now_s + deadline * TICK_S,
            after=after,
        )
        request = router.submit(spec)
        if world.random() < profile.cancel:
            self._cancel(request)
            self._cancel(request)
        if world.random() < profile.router_crash:
            world.after(world.ticks(1, 400), router.lose_memory, request)
        fewest = OVERLOAD_REQUESTS if profile.is_overload else 2
        if index + 1 < fewest or world.num_events < MIN_EVENTS:
            world.after(world.ticks(1, profile.gap), self._arrive)

    def _prompt(self, index: int) -> tuple[tuple[int, ...], int | None]:
        """Its own end after a beginning that others have, or after an earlier answer."""
        world, requests = self.world, self.router.requests
        own = tuple(range(OWN + index * 100, OWN + index * 100 + 8))
        if requests and world.random() < 0.4:
            answered = [r for r in requests if r.state is State.FINISHED and r.decode is not None]
            before = world.rng.choice((answered or requests)[-3:]).spec
            if len(before.tokens) < MAX_PROMPT:
                num_own = world.ticks(1, MAX_PROMPT + 1 - len(before.tokens))
                return before.tokens + own[:num_own], before.index
        first = SHARED + world.ticks(0, NUM_FAMILIES) * 100
        num_shared, num_own = world.ticks(0, MAX_PROMPT - 1), world.ticks(1, 5)
        common = tuple(range(first, first + num_shared))
        return (common + own[:num_own])[:MAX_PROMPT], None

    def _cancel(self, request: Request) -> None:
        delay = self.world.ticks(1, 400)
        self.world.after(delay, self.router.happen, request, Event.CANCELLED)


@dataclass(slots=True)
class Result:
    """What many seeds showed."""

    num_seeds: int = 0
    num_events: int = 0
    fewest_events: int = 10**9
    ends: Counter[str] = field(default_factory=Counter)
    visits: Counter[tuple[Enum, Enum]] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    """What only some schedules show."""
    failure: str = ""
    """Of the first seed that broke a rule, with its trace."""
    failed_seed: int | None = None

    def summary(self) -> str:
        """For people."""
        ends = ", ".join(f"{n} {end}" for end, n in sorted(self.ends.items()))
        mean = self.num_events / max(1, self.num_seeds)
        return (
            f"{self.num_seeds} seeds of {mean:.0f} events (fewest {self.fewest_events}); "
            f"requests: {ends}; seen: {dict(sorted(self.seen.items()))}"
        )

    def add(self, other: "Result") -> None:
        """Sum up."""
        self.num_seeds += other.num_seeds
        self.num_events += other.num_events
        self.fewest_events = min(self.fewest_events, other.fewest_events)
        self.ends.update(other.ends)
        self.visits.update(other.visits)
        self.seen.update(other.seen)
        if self.failed_seed is None and other.failed_seed is not None:
            self.failed_seed, self.failure = other.failed_seed, other.failure


@contextmanager
def running(loop: Loop) -> Iterator[None]:
    """What the parts take for asyncio's own."""
    asyncio._set_running_loop(loop.as_asyncio())
    try:
        yield
    finally:
        asyncio._set_running_loop(None)


@contextmanager
def replaced(parts: Parts) -> Iterator[None]:
    """The book builds the machines under test, and these walk tables that count."""
    with (
        patch("kv_transfer.book.Source", parts.source),
        patch("kv_transfer.book.Reader", parts.reader),
        patch("kv_transfer.source.SOURCE", coverage.SOURCE),
        patch("kv_transfer.sink.SINK", coverage.SINK),
    ):
        yield


def explain(seed: int, parts: Parts = REAL) -> str:
    """Run a seed again with a trace, and say what went wrong."""
    trace: list[str] = []
    try:
        with replaced(parts):
            Simulation(seed, parts, trace).run()
    except RuleBroken as error:
        tail = "\n".join(trace[-NUM_TRACED:])
        return f"seed {seed}: {error}\nlast of {len(trace)} events (ticks):\n{tail}"
    return f"seed {seed} holds all rules"


def run_seeds(seeds: range, parts: Parts = REAL) -> Result:
    """Run seeds one by one until one breaks a rule."""
    result = Result()
    for table in (coverage.SOURCE, coverage.SINK, coverage.LIFECYCLE):
        table.visits.clear()
    with replaced(parts):
        for seed in seeds:
            simulation = Simulation(seed, parts)
            try:
                simulation.run()
            except RuleBroken:
                result.failed_seed, result.failure = seed, explain(seed, parts)
                break
            except Exception as error:
                error.add_note(f"in seed {seed}")
                raise
            num_events = simulation.world.num_events
            result.num_seeds += 1
            result.num_events += num_events
            result.fewest_events = min(result.fewest_events, num_events)
            result.seen.update(simulation.world.seen)
            result.ends.update(r.state.value for r in simulation.router.requests)
    for table in (coverage.SOURCE, coverage.SINK, coverage.LIFECYCLE):
        result.visits.update(table.visits)
    return result


def run_on_all_cores(num_seeds: int, num_per_call: int = 250) -> Result:
    """Run seeds 0 … num_seeds - 1 on all cores."""
    cuts = [
        range(start, min(start + num_per_call, num_seeds))
        for start in range(0, num_seeds, num_per_call)
    ]
    result = Result()
    # Spawned, not forked: the process that runs the tests may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context) as pool:
        for part in pool.map(run_seeds, cuts):
            result.add(part)
    return result
