"""A store that would lose keys is told before anything is started."""

import pytest
from redis.asyncio import Redis

from registry.api import Registry, RegistryUnavailable
from registry.connect import connect
from registry.embedded import EmbeddedValkey
from registry.memory import MemoryRegistry, MemoryStore
from registry.store_check import StoreUnfit, check_store, eviction_problems

TOLD = "keys may be evicted above 104857600 bytes, by allkeys-lru: set maxmemory-policy noeviction"
CASES = [
    # id, what the store says of its memory, problems
    ("may evict", {"maxmemory": 104857600, "maxmemory_policy": "allkeys-lru"}, (TOLD,)),
    ("never evicts", {"maxmemory": 100, "maxmemory_policy": "noeviction"}, ()),
    ("has no limit", {"maxmemory": 0, "maxmemory_policy": "allkeys-lru"}, ()),
    ("tells no limit", {"maxmemory_policy": "allkeys-lru"}, ()),
    ("tells no policy", {"maxmemory": 100}, ()),
    ("tells something else", {"maxmemory": "100mb", "maxmemory_policy": 7}, ()),
    ("tells nothing", None, ()),
]


@pytest.mark.parametrize(("memory", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_a_store_says(memory: object, want: tuple[str, ...]) -> None:
    assert eviction_problems(memory) == want


async def told(registry: Registry) -> tuple[str, ...]:
    try:
        await check_store(registry)
    except StoreUnfit as unfit:
        return (str(unfit),)
    finally:
        await registry.close()
    return ()


async def test_a_real_store() -> None:
    async with EmbeddedValkey() as server, Redis.from_url(server.url) as client:
        assert await told(connect(server.url, "c")) == ()
        await client.config_set("maxmemory", "100mb")
        for policy in ("allkeys-lru", "volatile-ttl"):
            await client.config_set("maxmemory-policy", policy)
            assert await told(connect(server.url, "c")) == (TOLD.replace("allkeys-lru", policy),)
        # A store that somebody else runs need not answer to CONFIG, nor to INFO.
        password = server.url.split(":")[2].split("@")[0]
        for forbidden, want in (("-config", 1), ("-info", 0)):
            await client.acl_setuser(
                "guest",
                enabled=True,
                passwords=[f"+{password}"],
                keys=["*"],
                categories=["+@all"],
                commands=[forbidden],
                reset=True,
            )
            guest = server.url.replace("redis://:", "redis://guest:")
            assert len(await told(connect(guest, "c"))) == want


async def test_a_store_that_is_away_is_no_problem_of_its_own() -> None:
    store = MemoryStore(problems=("planted",))
    assert await told(MemoryRegistry(store)) == ("planted",)
    store.set_reachable(False)
    with pytest.raises(RegistryUnavailable):
        await told(MemoryRegistry(store))
    with pytest.raises(RegistryUnavailable):
        await told(connect("redis://127.0.0.1:1", "c"))
