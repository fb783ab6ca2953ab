"""What each tenant may still take at this router: its leased share of a bucket that all share."""

import asyncio
import logging
from dataclasses import dataclass

from core.clock import Clock
from core.errors import QuotaExceeded
from core.ids import RouterId
from core.settings import Settings, TenantSettings
from core.waiting import wait_at_most
from policy.quota import Bucket, wanted_share
from registry.api import QuotaAsk, QuotaGrant, Registry, RegistryUnavailable
from registry.backoff import Outage

logger = logging.getLogger(__name__)

RECONCILE_S = 1.0
LEASE_S = 10.0
"""A router that is gone frees its share by then; one that cannot reach the store keeps it."""
MAX_TENANTS = 4096
"""Whose buckets are kept; beyond, those that are full are forgotten first."""
MAX_RETRY_S = 3600.0
EVERYBODY = ""
"""Leased always, limited or not: it tells how many routers there are."""


@dataclass(slots=True, eq=False)
class _Account:
    """One tenant's."""

    share: float
    bucket: Bucket
    since_s: float
    """When it was last reconciled."""
    asked_tokens: float = 0.0
    """Since then, refused ones too."""


class Quotas:
    """Owns the accounts; `admit` and `refund` never wait for the store."""

    def __init__(self, registry: Registry, router_id: RouterId, clock: Clock) -> None:
        self._registry = registry
        self._router_id = router_id
        self._clock = clock
        self._settings = Settings()
        self._accounts: dict[str, _Account] = {}
        self._num_routers = 1
        self._is_due = asyncio.Event()

    def use(self, settings: Settings) -> None:
        """From now on; buckets keep what is in them."""
        self._settings = settings
        self._is_due.set()

    def admit(self, tenant: str, num_tokens: int) -> None:
        """Take so many tokens. Raises QuotaExceeded, which says how long to wait."""
        limits = self._settings.of_tenant(tenant)
        if not limits.tokens_per_s:
            return
        account, rate_per_s, capacity = self._refilled(tenant, limits)
        account.asked_tokens += num_tokens
        if account.bucket.take(num_tokens, capacity):
            return
        wait_s = account.bucket.wait_s(num_tokens, rate_per_s, capacity)
        raise QuotaExceeded(
            f"tenant {tenant or '(none)'}: {num_tokens} tokens asked for,"
            f" {max(0.0, account.bucket.level):.0f} left of {limits.tokens_per_s:g} per second",
            retry_after_s=min(MAX_RETRY_S, wait_s),
        )

    def refund(self, tenant: str, num_tokens: int) -> None:
        """What was taken and not used."""
        if tenant in self._accounts and num_tokens > 0:
            account = self._accounts[tenant]
            capacity = account.share * self._settings.of_tenant(tenant).capacity_tokens
            account.bucket.level = min(capacity, account.bucket.level + num_tokens)

    async def run(self) -> None:
        """Reconcile with the other routers every second, until cancelled."""
        outage = Outage("quotas")
        while True:
            self._is_due.clear()
            try:
                await self.reconcile()
            except RegistryUnavailable as error:
                # The last shares hold.
                await wait_at_most(self._is_due, outage.failed(error))
                continue
            outage.ended()
            await wait_at_most(self._is_due, RECONCILE_S)

    async def reconcile(self) -> None:
        """Once, for every tenant that is due. Raises RegistryUnavailable."""
        for tenant in self._due():
            await self._lease(tenant)

    def _due(self) -> list[str]:
        """Who asked since, who is new, and whose lease is half over."""
        now_s = self._clock.now_s()
        named = [name for name, t in self._settings.tenants.items() if t.tokens_per_s]
        new = [name for name in (EVERYBODY, *named) if name not in self._accounts]
        late = [
            name
            for name, account in self._accounts.items()
            if account.asked_tokens or now_s - account.since_s >= LEASE_S / 2
        ]
        return new + late

    async def _lease(self, tenant: str) -> None:
        now_s = self._clock.now_s()
        is_new = tenant not in self._accounts
        account = self._accounts.get(tenant) or self._open(tenant, share=0.0)
        if not account.asked_tokens and not is_new and not self._is_kept(tenant):
            del self._accounts[tenant]  # its lease ends by itself
            return
        demand = account.asked_tokens / max(RECONCILE_S, now_s - account.since_s)
        account.asked_tokens, account.since_s = 0.0, now_s
        seen = await self._ask(tenant, account.share, demand)
        num_routers = seen.num_others + 1
        wanted = wanted_share(demand, demand + seen.other_demand, num_routers)
        if wanted != seen.share:
            # The first call told what the others want; this one asks for what follows from it.
            seen = await self._ask(tenant, wanted, demand)
        account.share = seen.share
        if is_new and not seen.num_others:
            # Whoever comes later begins with nothing: the others may have spent it.
            account.bucket.level = seen.share * self._settings.of_tenant(tenant).capacity_tokens
        self._num_routers = num_routers
        self._refilled(tenant, self._settings.of_tenant(tenant))

    def _is_kept(self, tenant: str) -> bool:
        return tenant == EVERYBODY or tenant in self._settings.tenants

    async def _ask(self, tenant: str, share: float, demand: float) -> QuotaGrant:
        ask = QuotaAsk(tenant=tenant, router_id=self._router_id, share=share, demand=demand)
        return await self._registry.lease_quota(ask, ttl_s=LEASE_S)

    def _refilled(self, tenant: str, limits: TenantSettings) -> tuple[_Account, float, float]:
        account = self._accounts.get(tenant)
        if account is None:
            # An equal share of what nobody has touched, until the store has said more.
            account = self._open(tenant, share=1 / self._num_routers)
            self._is_due.set()
        rate_per_s = account.share * limits.tokens_per_s
        capacity = account.share * limits.capacity_tokens
        account.bucket.refill(rate_per_s, capacity, self._clock.now_s())
        return account, rate_per_s, capacity

    def _open(self, tenant: str, share: float) -> _Account:
        now_s = self._clock.now_s()
        level = share * self._settings.of_tenant(tenant).capacity_tokens
        account = self._accounts[tenant] = _Account(share, Bucket(level, now_s), now_s)
        while len(self._accounts) > MAX_TENANTS:
            oldest = min(self._accounts, key=lambda name: self._accounts[name].bucket.at_s)
            del self._accounts[oldest]
        return account
