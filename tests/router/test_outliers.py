"""Failures that a router sees, and whom it passes over for a while."""

import grpc
import pytest

from core.clock import ManualClock
from core.errors import (
    BatonError,
    DeadlinePassed,
    Draining,
    InvalidRequest,
    PeerLost,
    Saturated,
    WrongState,
)
from core.ids import InstanceId
from core.member import Role
from core.work import KvLostReason
from policy.table import Phase
from router.outliers import LOOK_EVERY_S, NUM_LOOKS, Outliers, is_fault
from router.spec import Speed
from router.view import View
from rpc.status import RemoteFault
from tests.router.conftest import OpenStage
from tests.router.test_recovery import ask
from tests.router.test_view import member

NAMES = ("p0", "p1", "p2", "d0", "d1", "d2")
P0, P1, P2, D0, D1, D2 = map(InstanceId, NAMES)


def outliers() -> tuple[Outliers, View, ManualClock]:
    clock = ManualClock()
    view = View(Speed().model(), clock)
    for name in NAMES:
        role = Role.PREFILL if name.startswith("p") else Role.DECODE
        view.join(member(name, role)).turn(alive=True)
    return Outliers(view.fleet, clock), view, clock


ERRORS = [
    (PeerLost("gone"), True),
    (RemoteFault("bug"), True),
    (Saturated("full"), False),
    (Draining("leaves"), False),
    (WrongState("late"), False),
    (InvalidRequest(()), False),
    (DeadlinePassed("slow"), False),
]


@pytest.mark.parametrize(("error", "want"), ERRORS, ids=[type(e).__name__ for e, _ in ERRORS])
def test_which_errors_are_faults(error: BatonError, want: bool) -> None:
    assert is_fault(error) == want


def test_an_instance_that_fails_is_passed_over_for_a_while() -> None:
    seen, view, clock = outliers()
    for _ in range(3):
        assert seen.rows(None) == frozenset()
        seen.failed(P0, PeerLost("gone"))
    assert seen.rows(None) == {view.fleet.rows[P0]}
    clock.advance(1.0)
    assert seen.rows(None) == frozenset()


def test_a_bad_line_ejects_the_pair_and_nobody_else() -> None:
    seen, view, clock = outliers()
    seen.kv_lost(P0, D0, KvLostReason.LEASE)
    assert seen.rows(P0) == frozenset()
    seen.kv_lost(P0, D0, KvLostReason.STALLED)
    assert seen.rows(P0) == {view.fleet.rows[D0]}
    assert seen.rows(D0) == {view.fleet.rows[P0]}
    assert seen.rows(P1) == seen.rows(None) == frozenset()
    clock.advance(1.0)
    seen.handed_over(P0, D0)
    assert seen.rows(P0) == frozenset()


def test_several_bad_lines_eject_their_common_end() -> None:
    seen, view, _ = outliers()
    seen.kv_lost(P0, D0, KvLostReason.STALLED)
    seen.kv_lost(P1, D0, KvLostReason.CORRUPT)
    assert seen.rows(P2) == {view.fleet.rows[D0]}


def test_a_slow_one_is_passed_over_when_it_stays_slow() -> None:
    seen, view, clock = outliers()
    view.fleet.table.decode_scale[view.fleet.rows[D1]] = 9.0
    for look in range(NUM_LOOKS):
        assert seen.rows(None) == frozenset(), look
        clock.advance(LOOK_EVERY_S)
    assert seen.rows(None) == {view.fleet.rows[D1]}
    assert view.fleet.has_seen(Phase.DECODE) is False


async def test_a_failing_instance_gets_no_more_work(stage: OpenStage) -> None:
    """One that is idle because it fails all it gets would look the best to every policy."""
    on = await stage("pppd")
    on["p0"].script.prefill_error = grpc.StatusCode.UNAVAILABLE
    for _ in range(24):
        await ask(on.client).answer()
    # Three to find out, and whatever came while it was given another chance.
    assert 3 <= len(on["p0"].prefills) <= 6
