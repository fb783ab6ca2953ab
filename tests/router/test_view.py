"""The view: what links tell shows in the columns, and rows change hands cleanly."""

from dataclasses import replace

import pytest

from core.clock import ManualClock
from core.ids import Fingerprint, InstanceId
from core.load import Load
from core.member import Member, Role
from core.timing import HandoffTiming, PrefillTiming
from policy.table import Phase
from router.spec import Speed
from router.view import EXPECTED_S, Sight, View


def member(name: str, role: Role = Role.PREFILL, host: str = "here") -> Member:
    return Member(
        instance_id=InstanceId(name),
        role=role,
        addresses=("127.0.0.1:1",),
        fingerprint=Fingerprint("f"),
        model="m",
        incarnation="1",
        host_id=host,
        protocol_version=1,
        block_size=16,
        max_context_tokens=4096,
        num_blocks=256,
    )


def view() -> tuple[View, ManualClock]:
    clock = ManualClock()
    return View(Speed().model(), clock), clock


def test_forty_come_and_every_second_goes() -> None:
    seen, _ = view()
    sights = [seen.join(member(f"p{i}")) for i in range(40)]
    for sight in sights:
        sight.turn(alive=True)
    for sight in sights[::2]:
        sight.leave()
    fleet = seen.fleet
    assert fleet.table.alive.sum() == 20
    assert {fleet.name(row) for row in fleet.table.alive.nonzero()[0].tolist()} == set(fleet.rows)
    # Rows are used again before there are more.
    assert {seen.join(member(f"q{i}")).row for i in range(20)} == {s.row for s in sights[::2]}
    assert len(fleet.table.role) == 40


def test_a_link_that_ends_late_does_not_write_to_another_ones_row() -> None:
    seen, _ = view()
    old = seen.join(member("p0"))
    old.leave()
    new = seen.join(member("p0"))
    new.turn(alive=True)
    old.turn(alive=False)
    old.report(Load(num_prefilling=9), 1)
    old.cached(is_snapshot=True, stored=(1, 2), removed=())
    old.is_mute()
    assert new.row == old.row
    assert seen.fleet.table.alive[new.row]
    assert seen.fleet.table.num_prefilling[new.row] == 0
    assert len(seen.index) == 0


def test_what_was_placed_counts_until_a_report_can_know_of_it() -> None:
    seen, clock = view()
    sight = seen.join(member("p0"))
    sight.expect(Phase.PREFILL, 100)
    sight.expect(Phase.DECODE, 100)
    clock.advance(EXPECTED_S / 2)
    # Perhaps made before the two arrived there.
    sight.report(Load(num_prefilling=1, num_pending_prompt_tokens=7), 0)
    assert shown(seen, sight) == (2, 107, 1)
    clock.advance(EXPECTED_S)
    sight.report(Load(num_prefilling=1, num_pending_prompt_tokens=7), 0)
    assert shown(seen, sight) == (1, 7, 0)


def shown(seen: View, sight: Sight) -> tuple[int, int, int]:
    table = seen.fleet.table
    return (
        int(table.num_prefilling[sight.row]),
        int(table.num_pending_prompt_tokens[sight.row]),
        int(table.num_incoming[sight.row]),
    )


def test_a_new_role_shows() -> None:
    seen, _ = view()
    sight = seen.join(member("p0"))
    sight.describe(replace(member("p0"), role=Role.MIXED))
    assert seen.fleet.table.role[sight.row] == 2


def test_who_gets_a_new_role_helps_no_more() -> None:
    seen, _ = view()
    sight = seen.join(member("p0"))
    seen.fleet.help(sight.row, helps=True)
    sight.describe(member("p0"))
    assert seen.fleet.table.helps[sight.row], "the same said again is no change"
    sight.describe(replace(member("p0"), role=Role.DECODE))
    assert not seen.fleet.table.helps[sight.row]


def test_speeds_are_learned_and_shared_with_who_was_never_seen() -> None:
    seen, clock = view()
    rows = [seen.join(member(f"p{i}")).row for i in range(3)]
    prefill = float(seen.observed.model.prefill @ [1, 100, 5050])
    seen.observed.prefilled(rows[0], 100, PrefillTiming(compute_s=3 * prefill))
    assert seen.fleet.table.prefill_scale == pytest.approx([3.0, 3.0, 3.0])
    # Cached tokens took no time.
    fresh = float(seen.observed.model.prefill @ [1, 20, 20 * 80 + 210])
    seen.observed.prefilled(rows[1], 100, PrefillTiming(compute_s=fresh, num_hit_tokens=80))
    assert seen.fleet.table.prefill_scale[rows[1]] == pytest.approx(1.0)
    # A first step needs a second frame; a pause is no step.
    seen.observed.stepped(rows[0], 1, 0, clock.now_s())
    assert seen.fleet.table.decode_scale[rows[0]] == 1.0
    clock.advance(0.2)
    seen.observed.stepped(rows[0], 1, 0, clock.now_s())
    assert seen.fleet.table.decode_scale[rows[0]] == pytest.approx(0.2 / 0.02)
    clock.advance(60)
    seen.observed.stepped(rows[0], 1, 0, clock.now_s())
    assert seen.fleet.table.decode_scale[rows[0]] == pytest.approx(0.2 / 0.02)


def test_links_are_learned_by_where_they_lead() -> None:
    seen, _ = view()
    near, other = seen.join(member("p0")), seen.join(member("d0"))
    far = seen.join(member("d1", host="there"))
    timing = HandoffTiming(source_tail_s=0.01, streaming_s=0.1, num_kv_tokens=100)
    seen.observed.handed_over(near.row, other.row, timing)
    seen.observed.handed_over(near.row, far.row, replace(timing, streaming_s=1.0))
    links = seen.observed.links
    assert links.same_host_s_per_token == pytest.approx(0.001)
    assert links.other_host_s_per_token == pytest.approx(0.01)
    assert links.handoff_s == pytest.approx(0.01)
