"""What every registry promises of its state: out, in again, and nothing in between."""

import pytest

from registry.api import Registry, SharedKeyDamaged
from registry.cluster_state import ClusterNotEmpty, ClusterState
from registry.editions import MAX_EDITIONS, Draft
from registry.leader import AnotherLeads
from registry.state import export_state, import_state
from tests.contract.conftest import Cluster
from tests.registry.support import make_member

LONG_S = 60.0
HOLDER, ADDRESS = "controller-a", "127.0.0.1:7001"
SETTINGS = ['log_level = "INFO"\n', '# Zoë\n[policy]\nname = "jsq"\n', "[limits]\nmax_queued = 7\n"]


async def fill(registry: Registry) -> int:
    """All families; the leader's term."""
    term = await registry.lead(HOLDER, ADDRESS, term=None, ttl_s=LONG_S)
    await registry.put_deployment('[model]\nname = "Fünf\x00"\n', term=term)
    for i, text in enumerate(SETTINGS):
        await registry.put_settings(Draft(text=text, author=f"Zoë {i}", restores=i))
    await registry.shared_key(bytes(range(32)))
    await registry.announce(make_member(), ttl_s=LONG_S)
    return term


async def test_what_was_exported_is_there_again(cluster: Cluster, registry: Registry) -> None:
    term = await fill(registry)
    before = await registry.state()
    text = await export_state(registry)
    await cluster.flush()
    assert await registry.state() == ClusterState()
    assert await import_state(registry, text) == before
    assert await registry.state() == before
    assert await export_state(registry) == text
    # And as the rest of a cluster sees it.
    assert await registry.deployment() == before.deployment
    assert await registry.settings_version() == len(SETTINGS)
    assert [edition.text for edition in await registry.editions()] == SETTINGS
    assert await registry.shared_key(bytes(32)) == bytes(range(32))
    assert await registry.members() == ()
    assert await registry.leader() is None
    with pytest.raises(AnotherLeads):
        await registry.put_deployment("of an earlier leader", term=term - 1)
    assert await registry.lead("another", ADDRESS, term=None, ttl_s=LONG_S) > term


async def test_an_empty_cluster_goes_there_and_back(registry: Registry) -> None:
    text = await export_state(registry)
    assert await import_state(registry, text) == ClusterState()
    assert await export_state(registry) == text


async def test_only_the_editions_kept_are_exported(cluster: Cluster, registry: Registry) -> None:
    for i in range(MAX_EDITIONS + 3):
        await registry.put_settings(Draft(text=f"# {i}\n", author="a"))
    text = await export_state(registry)
    await cluster.flush()
    state = await import_state(registry, text)
    assert (len(state.editions), state.settings_version) == (MAX_EDITIONS, MAX_EDITIONS + 3)
    assert await registry.editions() == state.editions
    assert await registry.put_settings(Draft(text="", author="a")) == MAX_EDITIONS + 4


THINGS = ["deployment", "settings", "key", "term", "member"]


@pytest.mark.parametrize("thing", THINGS)
async def test_a_store_that_knows_anything_is_spared(
    cluster: Cluster, registry: Registry, thing: str
) -> None:
    await fill(registry)
    text = await export_state(registry)
    await cluster.flush()
    match thing:
        case "deployment":
            await registry.put_deployment("another", term=1)
        case "settings":
            await registry.put_settings(Draft(text="", author="a"))
        case "key":
            await registry.shared_key(bytes(32))
        case "term":
            term = await registry.lead("another", ADDRESS, term=None, ttl_s=LONG_S)
            await registry.resign("another", term)
        case "member":
            await registry.announce(make_member(), ttl_s=LONG_S)
    before = await registry.state()
    with pytest.raises(ClusterNotEmpty):
        await import_state(registry, text)
    assert await registry.state() == before


async def test_replacing_is_seen_by_all_and_terms_do_not_go_down(
    cluster: Cluster, registry: Registry, other: Registry
) -> None:
    term = await fill(registry)
    text = await export_state(registry)
    await registry.resign(HOLDER, term)
    later = await other.lead("another", ADDRESS, term=None, ttl_s=LONG_S)
    await other.put_deployment("later", term=later)
    for i in range(3):
        await other.put_settings(Draft(text=f"# later {i}\n", author="b"))
    saved = await import_state(registry, text, replace=True)
    assert await other.deployment() == saved.deployment
    # Routers have version 6 in force: what is restored must not be taken for something they had.
    newest = (await other.editions())[-1]
    assert await other.settings_version() == newest.version == 7
    assert (newest.text, newest.author, newest.restores) == (SETTINGS[-1], "Zoë 2", 3)
    assert [edition.version for edition in await other.editions()] == [1, 2, 3, 7]
    assert await other.lead("another", ADDRESS, term=later, ttl_s=LONG_S) == later


async def test_replacing_with_nothing_leaves_nothing_but_the_term(
    registry: Registry, other: Registry
) -> None:
    text = await export_state(registry)
    term = await fill(registry)
    await import_state(registry, text, replace=True)
    state = await other.state()
    assert state == ClusterState(last_leader=state.last_leader)
    assert state.last_leader is not None
    assert state.last_leader.term == term
    assert await other.leader() == state.last_leader


async def test_a_damaged_key_is_told_and_not_shown(cluster: Cluster, registry: Registry) -> None:
    await cluster.damage_shared_key("canary" * 20)
    with pytest.raises(SharedKeyDamaged) as told:
        await export_state(registry)
    assert "canary" not in str(told.value)


async def test_nothing_of_a_cluster_that_was_forgotten_is_left(registry: Registry) -> None:
    await fill(registry)
    await registry.forget()
    assert await registry.state() == ClusterState()
    assert await registry.members() == ()
    assert await registry.leader() is None
