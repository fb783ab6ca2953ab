"""Who gets room while an answer waits in host memory: nobody who has none, until nothing comes."""

from tests.decode_worker.rig import Rig


async def test_no_new_handoff_gets_room_while_another_has_it_already() -> None:
    rig = Rig(num_blocks=12)
    async with rig.running():
        early = rig.join(tuple(range(1, 9)), 14)
        rig.join(tuple(range(40, 72)), 12)
        while not rig.phase.swap.num_waiting:
            await rig.step()
        await rig.copies.run_one()
        rig.has_reserved = True
        while early not in rig.ended:
            await rig.step()
        assert rig.phase.is_short, "that handoff will commit, run and end"
        rig.has_reserved = False
        assert not rig.phase.is_short, "nothing comes any more: leases may be waiting for room"
        await rig.to_the_end()
