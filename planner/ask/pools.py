"""A given cluster from text: pools of instances, and what happens to single ones."""

from collections.abc import Iterable

from core.errors import ConfigError
from core.member import Role
from core.parallel import ParallelLayout
from core.plan import Plan
from planner.search.fleet import Fleet
from planner.search.results import Pool
from planner.sim.spec import Change, Scheduling

POOL_SYNTAX = "TPxPP:INSTANCES[@GPU], for example 2x1:3"
LOSS_SYNTAX = "INSTANCE@SECONDS[-BACK], for example 0@60-120"


def parse_pool(role: Role, text: str, fleet: Fleet, scheduling: Scheduling) -> Pool:
    """Raises ConfigError."""
    size, _, hardware = text.partition("@")
    layout, _, num = size.partition(":")
    names = [each.name for each in fleet.hardware]
    if hardware and hardware not in names:
        raise ConfigError((f"--{role.value} {text}: the GPUs are {', '.join(names)}",))
    try:
        return Pool(
            role=role,
            layout=ParallelLayout.parse(layout),
            num=_at_least_1(num),
            hardware=hardware or names[0],
            scheduling=scheduling if role is Role.MIXED else Scheduling.EXCLUSIVE,
        )
    except ValueError as error:
        raise ConfigError(
            (f"--{role.value} must be {POOL_SYNTAX}; got {text!r}: {error}",)
        ) from None


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a number of instances of at least 1 is needed")
    return int(text)


def pools_of_plan(plan: Plan, fleet: Fleet, scheduling: Scheduling) -> tuple[Pool, ...]:
    """Those of plan.toml, each on the hardware that its instance type is named after; on the first
    kind where there is none of that name."""
    names = {each.instance_type: each.name for each in fleet.hardware}
    parts = ((Role.PREFILL, plan.prefill), (Role.DECODE, plan.decode), (Role.MIXED, plan.mixed))
    return tuple(
        Pool(
            role=role,
            layout=part.layout,
            num=part.replicas,
            hardware=names.get(part.instance_type, fleet.hardware[0].name),
            scheduling=scheduling if role is Role.MIXED else Scheduling.EXCLUSIVE,
        )
        for role, part in parts
        if part.replicas
    )


def parse_losses(texts: Iterable[str], num_instances: int) -> tuple[Change, ...]:
    """By time. Raises ConfigError with every problem."""
    found, problems = list[Change](), list[str]()
    for text in texts:
        try:
            found.append(_loss(text, num_instances))
        except ValueError as error:
            problems.append(f"--lose must be {LOSS_SYNTAX}; got {text!r}: {error}")
    if problems:
        raise ConfigError(tuple(problems))
    return tuple(sorted(found, key=lambda each: each.at_s))


def _loss(text: str, num_instances: int) -> Change:
    instance, _, moments = text.partition("@")
    at, dash, back = moments.partition("-")
    change = Change(
        at_s=float(at),
        instance=int(instance),
        back_s=float(back) if dash else float("inf"),
    )
    if not 0 <= change.instance < num_instances:
        raise ValueError(f"instances are 0 to {num_instances - 1}")
    if not 0 <= change.at_s < change.back_s:
        raise ValueError("it is lost at 0 s or later, and back after that")
    return change
