"""On which host each new member goes, and what is missing when one fits nowhere. Pure.

A host is never filled by counting on somebody leaving: what drains still holds its place.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from core.errors import BatonError
from core.member import Role
from core.plan import PAIRED, Plan, PoolPlan

MAX_SHOWN_HOSTS = 8
"""In a message: more would not be read."""
ROUNDING = 1e-6
"""0.6 - 0.2 - 0.2 is less than 0.2 in binary fractions. Ray counts in steps of 0.0001."""


class DoesNotFit(BatonError):
    """The plan asks for more than the hosts have; names all that is missing."""

    status = "FAILED_PRECONDITION"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What one Ray node has left."""

    address: str
    free: Mapping[str, float]
    """Ray resources by name."""
    roles: Mapping[Role, int] = field(default_factory=dict)
    """Our instances there."""

    def holds(self, bundle: Mapping[str, float]) -> bool:
        """Whether there is room for it."""
        return all(self.free.get(name, 0.0) >= amount - ROUNDING for name, amount in bundle.items())

    def with_member(self, role: Role, bundle: Mapping[str, float]) -> "Host":
        """After one more has been put here."""
        free = {name: left - bundle.get(name, 0.0) for name, left in self.free.items()}
        return replace(self, free=free, roles=Counter(self.roles) + Counter({role: 1}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """One instance to be put somewhere."""

    role: Role
    bundle: Mapping[str, float]
    """Ray resources of all its ranks, which are on one host."""


def bundle_of(plan: Plan, pool: PoolPlan) -> dict[str, float]:
    """What an instance of the pool takes of its host."""
    kind, num = plan.type_of(pool), pool.layout.num_workers
    bundle = {"CPU": kind.num_cpus * num, "GPU": kind.num_gpus * num, **kind.resources}
    return {name: amount for name, amount in bundle.items() if amount}


def wants_of(plan: Plan) -> list[Want]:
    """Every instance of a plan; the phases in turn, so that pairs find each other."""
    wants = [
        (index, Want(role=role, bundle=bundle_of(plan, pool)))
        for role, pool in plan.pools.items()
        for index in range(pool.replicas)
    ]
    return [want for _, want in sorted(wants, key=lambda pair: pair[0])]


def choose_host(plan: Plan, want: Want, hosts: Sequence[Host]) -> Host | None:
    """Where it goes: beside its partner, if pairs share hosts; else where the fewest of its kind
    are, so that a host that dies takes few of one pool. None: nowhere."""
    fitting = [host for host in hosts if host.holds(want.bundle)]
    if plan.affinity == PAIRED and _partner(want.role) is not want.role:
        fitting = [host for host in fitting if _may_pair(plan, want, host)]
    return min(fitting, key=lambda host: _preference(plan, want, host), default=None)


def _preference(plan: Plan, want: Want, host: Host) -> tuple[float, ...]:
    own, partners = host.roles.get(want.role, 0), host.roles.get(_partner(want.role), 0)
    waiting = max(0, partners - own) if plan.affinity == PAIRED else 0
    left = sum(host.free.get(name, 0.0) - amount for name, amount in want.bundle.items())
    return (-waiting, own, sum(host.roles.values()), -left)


def _may_pair(plan: Plan, want: Want, host: Host) -> bool:
    """A partner waits here, or there is room for the partner, too."""
    if host.roles.get(_partner(want.role), 0) > host.roles.get(want.role, 0):
        return True
    partner = bundle_of(plan, plan.pools[_partner(want.role)])
    return host.with_member(want.role, want.bundle).holds(partner)


def _partner(role: Role) -> Role:
    return {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}.get(role, role)


def with_back(host: Host, bundles: Sequence[Mapping[str, float]]) -> Host:
    """As if these were not there, and nothing else of ours."""
    free = Counter(dict(host.free))
    for bundle in bundles:
        free.update(Counter(dict(bundle)))
    return replace(host, free=dict(free), roles={})


def check_fits(plan: Plan, hosts: Sequence[Host]) -> None:
    """Raise DoesNotFit, naming every kind of instance that is left over.

    `hosts` are as they are without this cluster: what it replaces makes room.
    """
    room = list(hosts)
    missing: list[Want] = []
    # In the order in which they will be started: what is accepted can be placed.
    for want in wants_of(plan):
        host = choose_host(plan, want, room)
        if host is None:
            missing.append(want)
        else:
            room[room.index(host)] = host.with_member(want.role, want.bundle)
    if missing:
        raise DoesNotFit("; ".join(_explained(plan, missing, room)))


def _explained(plan: Plan, missing: Sequence[Want], room: Sequence[Host]) -> Iterator[str]:
    counts = Counter((want.role, tuple(sorted(want.bundle.items()))) for want in missing)
    for (role, bundle), num in counts.items():
        needs = " and ".join(f"{amount:g} {name}" for name, amount in bundle)
        beside = " beside its partner" if plan.affinity == PAIRED else ""
        yield (
            f"{num} of {plan.pools[role].replicas} {role} instances do not fit, "
            f"each needs {needs} on one host{beside}"
        )
        for name, amount in bundle:
            most = max((host.free.get(name, 0.0) for host in room), default=0.0)
            if most < amount - ROUNDING:
                yield f"no host has {amount:g} {name} left, the most is {most:g}"
    shown = [f"{host.address} ({_free(host)})" for host in room[:MAX_SHOWN_HOSTS]]
    yield f"left on {len(room)} hosts: {', '.join(shown) or 'none'}"


def _free(host: Host) -> str:
    names = [name for name in ("CPU", "GPU") if name in host.free]
    others = sorted(n for n in host.free if n not in ("CPU", "GPU") and not _is_rays_own(n))
    return ", ".join(f"{host.free[name]:g} {name}" for name in (*names, *others))


def _is_rays_own(name: str) -> bool:
    return (
        name.startswith(("node:", "bundle_group"))
        or "_group_" in name
        or name in ("memory", "object_store_memory")
    )
