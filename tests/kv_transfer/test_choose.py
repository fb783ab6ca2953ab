"""Which carrier a pair uses, and what is logged where it is not the wanted one."""

import logging

import pytest

from kv_transfer.carriers.choose import AUTO, MAX_CHARS, MAX_NOTED, Carriers
from kv_transfer.carriers.contract import CarrierUnusable
from kv_transfer.carriers.inline import InlineInlet, InlineOutlet
from kv_transfer.carriers.shm import ShmCarrier
from rpc.pb import kv_transfer_pb2 as pb
from tests.contract.carriers import SOURCE_ADDRESS, InlineCarrier


class Anywhere(InlineCarrier):
    """A carrier that needs no common place."""

    name = "torchdist"

    def offer(self) -> pb.CarrierOffer | None:
        return pb.CarrierOffer(carrier=self.name)


OFFERS = [
    # wanted     offered
    (AUTO, ["shm"]),
    ("shm", ["shm"]),
    ("torchdist", ["torchdist"]),
    ("grpc", []),
]


@pytest.mark.parametrize(("wanted", "offered"), OFFERS)
def test_what_is_offered(wanted: str, offered: list[str]) -> None:
    carriers = Carriers((ShmCarrier(), Anywhere()), wanted)
    assert [offer.carrier for offer in carriers.offers()] == offered
    carriers.close()


def test_what_cannot_be_met_goes_inline_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    carriers = Carriers((Anywhere(),))
    outlet = carriers.outlet([pb.CarrierOffer(carrier="nixl")], "sink")
    assert isinstance(outlet, InlineOutlet)
    assert "peer=sink carrier=nixl why=this instance has no carrier 'nixl'" in caplog.text


def test_an_unknown_carrier_is_not_attached() -> None:
    carriers = Carriers(())
    assert isinstance(carriers.inlet("grpc", SOURCE_ADDRESS), InlineInlet)
    with pytest.raises(CarrierUnusable):
        carriers.inlet("shm", SOURCE_ADDRESS)


def test_a_fallback_is_logged_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    carriers = Carriers(())
    for reason in ("a", "b", "a", "b"):
        carriers.note_fallback("sink", "shm", reason)
        carriers.note_fallback("another", "shm", reason)
    assert len(caplog.records) == 4
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_only_the_last_fallbacks_are_remembered(caplog: pytest.LogCaptureFixture) -> None:
    carriers = Carriers(())
    for index in range(MAX_NOTED + 1):
        carriers.note_fallback(f"sink-{index}", "shm", "x" * 10_000)
    assert len(caplog.records) == MAX_NOTED + 1
    assert max(len(record.getMessage()) for record in caplog.records) < 2 * MAX_CHARS
    carriers.note_fallback(f"sink-{MAX_NOTED}", "shm", "x" * 10_000)
    assert len(caplog.records) == MAX_NOTED + 1, "still remembered"
    carriers.note_fallback("sink-0", "shm", "x" * 10_000)
    assert len(caplog.records) == MAX_NOTED + 2, "forgotten"
