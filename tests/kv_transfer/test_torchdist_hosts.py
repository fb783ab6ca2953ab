"""A source's words make a sink go to no other host than its Fetch call does."""

from contextlib import closing

import pytest

from kv_transfer.carriers.contract import CarrierUnusable
from kv_transfer.carriers.pair_group import PairGroup
from kv_transfer.carriers.torchdist import TorchDistCarrier
from rpc.pb import kv_transfer_pb2 as pb

PATIENCE_S = 30.0
HOSTS = [
    # id                    announced          the Fetch call goes to   is the same
    ("one address", "127.0.0.1:1", "127.0.0.1:2", True),
    ("another address", "127.0.0.2:1", "127.0.0.1:1", False),
    ("its name", "localhost:1", "127.0.0.1:1", False),
    ("one name", "Host-a:1", "host-A:2", True),
    ("a longer name", "host-a.b:1", "host-a:1", False),
    ("IPv6", "[::1]:1", "[::1]:2", True),
    ("another IPv6", "[::2]:1", "[::1]:1", False),
]


@pytest.mark.parametrize(
    ("announced_at", "fetched_at", "is_same"), [row[1:] for row in HOSTS], ids=[r[0] for r in HOSTS]
)
async def test_a_source_is_met_at_its_own_host_only(
    announced_at: str, fetched_at: str, is_same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = []

    async def reach(group: PairGroup, address: str) -> None:
        reached.append(address)

    monkeypatch.setattr(PairGroup, "reach", reach)
    with closing(TorchDistCarrier("127.0.0.1", PATIENCE_S)) as sink:
        inlet = sink.inlet(fetched_at)
        announce = pb.Announce()
        announce.pair_group.group_id = "a" * 32 + ".1"
        announce.pair_group.store_address = announced_at
        if is_same:
            await inlet.attach(announce)
        else:
            with pytest.raises(CarrierUnusable, match="and the source is"):
                await inlet.attach(announce)
        inlet.close()
    assert reached == [announced_at] * is_same
