"""settings.toml: what a running cluster can be told anew. `baton apply` hands it to the routers."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.config import POLICIES, build
from core.errors import ConfigError
from core.limits import MAX_PRIORITY, MAX_TENANT_CHARS

MAX_SETTINGS_BYTES = 256 * 1024
MAX_TENANTS = 1024
LOG_LEVELS = ("", "DEBUG", "INFO", "WARNING", "ERROR")
MAX_WEIGHT = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """What one tenant may take."""

    tokens_per_s: float = 0.0
    """Prompt and output tokens, over all routers and sustained; 0: no limit."""
    burst_tokens: float = 0.0
    """May be taken at once after a pause; 0: what comes in ten seconds."""
    weight: float = 1.0
    """Of its share where tenants wait for one another."""
    max_priority: int = MAX_PRIORITY
    """Higher ones are refused."""

    @property
    def capacity_tokens(self) -> float:
        """Of its bucket."""
        return self.burst_tokens or 10 * self.tokens_per_s

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if not 0 <= self.tokens_per_s <= 1e9 or not 0 <= self.burst_tokens <= 1e12:
            yield "tokens_per_s must be 0 to 1e9, burst_tokens 0 to 1e12"
        if not 0 < self.weight <= MAX_WEIGHT:
            yield f"weight must be above 0, at most {MAX_WEIGHT:g}, got {self.weight:g}"
        if not -MAX_PRIORITY <= self.max_priority <= MAX_PRIORITY:
            yield f"max_priority must be -{MAX_PRIORITY} to {MAX_PRIORITY}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """In place of the configuration's; 0 leaves that."""

    max_running: int = 0
    max_queued: int = 0
    default_timeout_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """Placement in place of the configuration's."""

    name: str = ""
    """Empty leaves that."""
    work: float = 1.0
    """See `policy.table.Weights`."""
    disturbance: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole document."""

    tenants: Mapping[str, TenantSettings] = field(default_factory=dict)
    default_tenant: TenantSettings = field(default_factory=TenantSettings)
    """Of every tenant that has no table of its own."""
    limits: LimitSettings = field(default_factory=LimitSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    log_level: str = ""
    """Empty leaves what the process was started with."""

    def of_tenant(self, tenant: str) -> TenantSettings:
        """Its own, or those of everybody else."""
        return self.tenants.get(tenant, self.default_tenant)

    def problems(self) -> Iterator[str]:
        """What is wrong, if anything."""
        if len(self.tenants) > MAX_TENANTS:
            yield f"at most {MAX_TENANTS} tenants, got {len(self.tenants)}"
        for name, tenant in self.tenants.items():
            if len(name) > MAX_TENANT_CHARS:
                yield f"a tenant's name has at most {MAX_TENANT_CHARS} characters"
            yield from (f"tenants.{name}: {problem}" for problem in tenant.problems())
        yield from (f"default_tenant: {problem}" for problem in self.default_tenant.problems())
        limits, policy = self.limits, self.policy
        if min(limits.max_running, limits.max_queued, limits.default_timeout_s) < 0:
            yield "limits must be at least 0"
        if policy.name and policy.name not in POLICIES:
            yield f"policy.name must be of {', '.join(POLICIES)}, got {policy.name!r}"
        if not (0 <= policy.work <= MAX_WEIGHT and 0 <= policy.disturbance <= MAX_WEIGHT):
            yield f"policy weights must be 0 to {MAX_WEIGHT:g}"
        if self.log_level not in LOG_LEVELS:
            yield f"log_level must be of {', '.join(LOG_LEVELS[1:])}, got {self.log_level!r}"


def parse_settings(text: str, name: str = "settings") -> Settings:
    """Read TOML text. Raises ConfigError with every unknown key and every problem."""
    if len(text.encode()) > MAX_SETTINGS_BYTES:
        raise ConfigError((f"{name}: {len(text.encode())} bytes, limit {MAX_SETTINGS_BYTES}",))
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError((f"{name}: {error}",)) from error
    problems: list[str] = []
    tenants = _tenants(document.pop("tenants", {}), name, problems)
    settings = build(_Rest, document, name, problems)
    if settings is None or problems:
        raise ConfigError(tuple(problems))
    whole = Settings(
        tenants=tenants,
        default_tenant=settings.default_tenant,
        limits=settings.limits,
        policy=settings.policy,
        log_level=settings.log_level,
    )
    if wrong := tuple(f"{name}: {problem}" for problem in whole.problems()):
        raise ConfigError(wrong)
    return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rest:
    """Without the one table whose keys are names."""

    default_tenant: TenantSettings = field(default_factory=TenantSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    log_level: str = ""


def _tenants(tables: Any, name: str, problems: list[str]) -> dict[str, TenantSettings]:  # noqa: ANN401
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        problems.append(f"{name}: tenants must be tables, as in [tenants.NAME]")
        return {}
    built = {
        tenant: build(TenantSettings, table, f"{name}: tenants.{tenant}", problems)
        for tenant, table in tables.items()
    }
    return {tenant: settings for tenant, settings in built.items() if settings is not None}
