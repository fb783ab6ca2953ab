"""A cluster that is simulated while a controller looks at it, on a clock of its own.

The simulator plays the whole run with the changes made so far. A change later on does not alter
what came before it, so that playing it again from the start, with one change more, goes on from
where it was.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from core.member import Role
from core.parallel import ParallelLayout
from planner.ask.latency import Times, source_of
from planner.ask.model import find_model
from planner.online.ground import Ground, Sizes
from planner.online.online import Decision
from planner.online.window import Ended, Recent, Window, columns_of
from planner.search.fleet import Fleet, Hardware, cluster_of
from planner.sim.outcome import Outcome
from planner.sim.simulate import simulate
from planner.sim.spec import Change, Network
from planner.sim.traffic import Traffic, traffic
from planner.workload.arrivals import Replay
from planner.workload.presets import load_workload
from policy.hardware import catalogue
from policy.step_times import PS_PER_S
from policy.table import Floats
from tests.planner.online import shift_spec as spec

ONE = ParallelLayout()
Look = Callable[[float, Recent, Sizes], Decision]


def ground() -> Ground:
    """Of the spec: hosts of eight, from data sheets."""
    gpu = catalogue()[spec.GPU]
    source = source_of(Times(max_gpus=1), find_model(spec.MODEL), spec.GPU, gpu)
    network = Network(
        host_bytes_per_s=gpu.network_bytes_per_s * gpu.gpus_per_host,
        local_bytes_per_s=gpu.link_bytes_per_s,
    )
    hardware = Hardware(name=spec.GPU, source=source)
    return Ground(
        fleet=Fleet(hardware=(hardware,), network=network),
        layouts={Role.PREFILL: ONE, Role.DECODE: ONE, Role.MIXED: ONE},
        slo=spec.SLO,
        target=spec.TARGET,
    )


def segment(preset: str, speed: float, span_s: float = spec.SEGMENT_S) -> Traffic:
    """So much of a trace, from its start."""
    workload = load_workload(preset)
    rate_per_s = (workload.natural_rate_per_s or 0.0) * spec.COMPRESSION * speed
    made = workload.traffic(rate_per_s, int(2 * rate_per_s * span_s), spec.SEED)
    num = int(np.searchsorted(made.arrival_ps, span_s * PS_PER_S))
    return traffic(
        made.arrival_ps[:num] / PS_PER_S, made.num_prompt_tokens[:num], made.num_output_tokens[:num]
    )


def whole_trace(preset: str, speed: float) -> Traffic:
    """Once, as fast as in the segment."""
    arrivals = load_workload(preset).arrivals
    assert isinstance(arrivals, Replay)
    recorded_s = len(arrivals.trace.at_s) / arrivals.trace.rate_per_s
    return segment(preset, speed, recorded_s / spec.COMPRESSION / speed)


def one_after_the_other(parts: list[Traffic]) -> Traffic:
    """Each for as long as a segment."""
    at_s = [part.arrival_ps / PS_PER_S + k * spec.SEGMENT_S for k, part in enumerate(parts)]
    return traffic(
        np.concatenate(at_s),
        np.concatenate([part.num_prompt_tokens for part in parts]),
        np.concatenate([part.num_output_tokens for part in parts]),
    )


def offered(part: Traffic) -> Recent:
    """A whole segment as if all of it had ended well: what an offline planner is given."""
    columns = zip(
        part.arrival_ps / PS_PER_S, part.num_prompt_tokens, part.num_output_tokens, strict=True
    )
    rows = (Ended(float(at), int(p), 0, int(n), 0.0, 0.0, "OK") for at, p, n in columns)
    return columns_of(rows, 0.0, float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """One change of the plan."""

    at_s: float
    before: Sizes
    after: Sizes


@dataclass(slots=True, kw_only=True)
class World:
    """Instances are numbered; those beyond the plan are lost from the start, until added."""

    ground: Ground
    traffic: Traffic
    sizes: Sizes
    roles: list[Role | None] = field(default_factory=list)
    """By instance, as planned; None: it is not there."""
    changes: list[Change] = field(default_factory=list)
    history: list[Changed] = field(default_factory=list)
    outcome: Outcome = field(init=False)
    ends_s: Floats = field(init=False)
    told: list[Ended] = field(init=False)
    """In the order in which they end, as `ends_s`."""

    def __post_init__(self) -> None:
        """The first so many prefill, then decode."""
        num = spec.MAX_INSTANCES - self.sizes.total
        self.roles = [
            *[Role.PREFILL] * self.sizes.prefill,
            *[Role.DECODE] * self.sizes.decode,
            *[None] * num,
        ]
        self._play()

    def _play(self) -> None:
        most = Sizes(
            prefill=spec.MAX_INSTANCES - self.sizes_at_start.decode,
            decode=self.sizes_at_start.decode,
        )
        made = cluster_of(self.ground.fleet, self.ground.candidate(most))
        start = self.sizes_at_start
        # Those that are not there yet come last.
        prefill, decode = made.instances[: most.prefill], made.instances[most.prefill :]
        instances = (*prefill[: start.prefill], *decode, *prefill[start.prefill :])
        absent = [
            Change(at_s=0.0, instance=number, back_s=self._back_s(number))
            for number in range(start.total, spec.MAX_INSTANCES)
        ]
        cluster = replace(made, instances=instances, changes=(*absent, *self.changes))
        self.outcome = simulate(cluster, self.traffic)
        ends_s = self.outcome.last_token_ps / PS_PER_S
        order = np.argsort(ends_s, kind="stable")
        oks = np.full(len(order), "OK")
        columns = (
            self.traffic.arrival_ps / PS_PER_S,
            self.traffic.num_prompt_tokens,
            self.outcome.num_hit_tokens,
            self.traffic.num_output_tokens,
            self.outcome.ttft_s,
            np.nan_to_num(self.outcome.tpot_s),
            oks,
        )
        rows = zip(*(column[order].tolist() for column in columns), strict=True)
        self.ends_s, self.told = ends_s[order], [Ended(*row) for row in rows]

    @property
    def sizes_at_start(self) -> Sizes:
        return self.history[0].before if self.history else self.sizes

    def _back_s(self, number: int) -> float:
        backs = [c.at_s for c in self.changes if c.instance == number]
        return min(backs, default=float("inf"))

    def change(self, now_s: float, after: Sizes) -> None:
        """As a controller would: roles of some, and then more instances."""
        assert after.total >= self.sizes.total, "nothing of the spec takes instances away"
        surplus = {
            role: self.roles.count(role) - after.of_role(role)
            for role in (Role.PREFILL, Role.DECODE)
        }
        self.history.append(Changed(at_s=now_s, before=self.sizes, after=after))
        for number, role in enumerate(self.roles):
            wanted = min(surplus, key=lambda each: surplus[each])
            if surplus[wanted] >= 0:
                break
            if role is None or surplus[role] > 0:
                at_s = now_s + (spec.LOAD_S if role is None else spec.ROLE_CHANGE_S)
                self.changes.append(Change(at_s=at_s, instance=number, role=wanted))
                self.roles[number] = wanted
                surplus[wanted] += 1
                if role is not None:
                    surplus[role] -= 1
        self.sizes = after
        self._play()

    def ended(self, from_s: float, to_s: float) -> list[Ended]:
        """As routers tell it."""
        return self.told[slice(*np.searchsorted(self.ends_s, (from_s, to_s)))]

    def attainment(self, from_s: float, to_s: float) -> float:
        """Of requests that came in this time."""
        at_s = self.traffic.arrival_ps / PS_PER_S
        came = (at_s >= from_s) & (at_s < to_s)
        return float(self.outcome.met((spec.SLO,))[came].mean())


def watched(world: World, look: Look, until_s: float) -> list[tuple[float, Decision]]:
    """Look again and again, and do what is said."""
    window = Window(window_s=spec.WINDOW_S, began_at_s=0.0)
    told, now_s = list[tuple[float, Decision]](), 0.0
    while (now_s := now_s + spec.LOOK_S) <= until_s:
        window.add(world.ended(now_s - spec.LOOK_S, now_s), now_s=now_s)
        decision = look(now_s, window.recent(now_s), world.sizes)
        told.append((now_s, decision))
        if decision.change is not None:
            world.change(now_s, decision.change)
    return told
