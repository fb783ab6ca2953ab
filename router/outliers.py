"""What this router saw of each instance and each pair: who is ejected, for placement."""

from collections import OrderedDict
from typing import TypeVar

from core.clock import Clock
from core.errors import BatonError, DeadlinePassed, Draining, NoInstance
from core.ids import InstanceId
from core.work import KvLostReason
from policy.outliers import INSTANCE, PAIR, Record, honoured, slow_rows, with_bad_pairs
from policy.table import Phase
from router.fleet import Fleet

MAX_RECORDS = 4096
"""Who did nothing for longest is forgotten first."""
LOOK_EVERY_S = 1.0
"""For slow ones; so many looks in a row must find the same: a moment is no fault."""
NUM_LOOKS = 3

FAULTS = frozenset({"UNAVAILABLE", "INTERNAL", "UNKNOWN", "DATA_LOSS"})
PAIR_FAULTS = frozenset({KvLostReason.PEER, KvLostReason.STALLED, KvLostReason.CORRUPT})
"""A lease that ended was ended by somebody, for a reason of its own."""

K = TypeVar("K")
Pair = tuple[InstanceId, InstanceId]


def is_fault(error: BatonError) -> bool:
    """Whether it speaks against the instance: being full or about to leave does not."""
    return error.status in FAULTS and not isinstance(error, (Draining, NoInstance))


class Outliers:
    """Owns the records; choices write them, the placer reads them."""

    def __init__(self, fleet: Fleet, clock: Clock) -> None:
        self._fleet = fleet
        self._clock = clock
        self._instances: OrderedDict[InstanceId, Record] = OrderedDict()
        self._pairs: OrderedDict[Pair, Record] = OrderedDict()
        self._out: dict[InstanceId, float] = {}
        self._out_pairs: dict[Pair, float] = {}
        """Who is ejected, until when: few, where the records may be many."""
        self._num_looks_slow: dict[InstanceId, int] = {}
        self._looked_at_s = clock.now_s()

    def served(self, instance_id: InstanceId) -> None:
        """It did its part of a request."""
        self._note_instance(instance_id, ok=True)

    def failed(self, instance_id: InstanceId, error: BatonError) -> None:
        """A call to it, or what it said of a request, was an error."""
        # A call that only notes something took its whole time: the instance is stuck.
        if is_fault(error) or isinstance(error, DeadlinePassed):
            self._note_instance(instance_id, ok=False)

    def handed_over(self, source_id: InstanceId, sink_id: InstanceId) -> None:
        """KV went from one to the other."""
        self._note_pair((source_id, sink_id), ok=True)

    def kv_lost(self, source_id: InstanceId, sink_id: InstanceId, why: KvLostReason) -> None:
        """KV did not."""
        if why in PAIR_FAULTS:
            self._note_pair((source_id, sink_id), ok=False)

    def rows(self, partner_id: InstanceId | None) -> frozenset[int]:
        """Who is not to be placed on now; `partner_id` is or will be the other half of a pair."""
        now_s = self._clock.now_s()
        self._look_for_slow(now_s)
        _forget_past(self._out, now_s)
        _forget_past(self._out_pairs, now_s)
        if not self._out and not self._out_pairs:
            return frozenset()
        until_s = dict(self._out)
        for name in with_bad_pairs(self._out_pairs):
            until_s[name] = max(at_s for pair, at_s in self._out_pairs.items() if name in pair)
        rows = self._fleet.rows
        deserved = {rows[name]: at_s for name, at_s in until_s.items() if name in rows}
        found = honoured(self._fleet.table, deserved)
        others = {name for pair in self._out_pairs if partner_id in pair for name in pair}
        return found | {rows[name] for name in others if name in rows and name != partner_id}

    def _note_instance(self, name: InstanceId, *, ok: bool) -> None:
        now_s = self._clock.now_s()
        record = self._instances.get(name, Record()).after(now_s, INSTANCE, ok=ok)
        _keep(self._instances, name, record)
        if not ok and record.is_ejected(now_s):
            self._out[name] = record.ejected_until_s

    def _note_pair(self, pair: Pair, *, ok: bool) -> None:
        now_s = self._clock.now_s()
        record = self._pairs.get(pair, Record()).after(now_s, PAIR, ok=ok)
        _keep(self._pairs, pair, record)
        if not ok and record.is_ejected(now_s):
            self._out_pairs[pair] = record.ejected_until_s

    def _look_for_slow(self, now_s: float) -> None:
        if now_s - self._looked_at_s < LOOK_EVERY_S:
            return
        self._looked_at_s, table = now_s, self._fleet.table
        slow = {self._fleet.name(row) for phase in Phase for row in slow_rows(table, phase)}
        self._num_looks_slow = {name: 1 + self._num_looks_slow.get(name, 0) for name in slow}
        for name, num_looks in self._num_looks_slow.items():
            record = self._instances.get(name, Record())
            if num_looks >= NUM_LOOKS and not record.is_ejected(now_s):
                record = record.ejected(now_s)
                _keep(self._instances, name, record)
                self._out[name] = record.ejected_until_s


def _keep(records: OrderedDict[K, Record], key: K, record: Record) -> None:
    records[key] = record
    records.move_to_end(key)
    if len(records) > MAX_RECORDS:
        records.popitem(last=False)


def _forget_past(until_s: dict[K, float], now_s: float) -> None:
    for key in [key for key, at_s in until_s.items() if at_s <= now_s]:
        del until_s[key]
