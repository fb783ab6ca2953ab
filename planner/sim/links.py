"""Transfers as fluid flows: those that share a way share it fairly (max-min).

Bertsekas and Gallager, "Data Networks" (1992), section 6.5.2: fill all flows evenly; the way that
is full first fixes the rates of its flows; go on with the others. Only flows that are connected
through shared ways with one that comes or goes are looked at.
"""

import numpy as np

from planner.sim.heap import NONE, cancel, schedule
from planner.sim.state import BODY, NUM_MARKS, Links, Sim

OUT, IN = 0, 1
NOBODY = np.inf


def links(local_per_ps: float, host_per_ps: float, num_hosts: int, num_requests: int) -> Links:
    """Nothing moves; bytes per picosecond of each host's ways."""
    num = 3 * num_hosts
    rates = np.tile([local_per_ps, host_per_ps, host_per_ps], num_hosts).astype(np.float64)
    rows = num_requests if np.isfinite(rates).any() else 0
    return Links(
        bytes_per_ps=rates,
        head=np.full(num, NONE, dtype=np.int64),
        nexts=np.full((rows, 2), NONE, dtype=np.int64),
        prevs=np.full((rows, 2), NONE, dtype=np.int64),
        num=np.zeros(num, dtype=np.int64),
        marks=np.zeros(num, dtype=np.int64),
        stack=np.zeros(num, dtype=np.int64),
        found=np.zeros(rows, dtype=np.int64),
        free=np.zeros(num, dtype=np.float64),
        open=np.zeros(num, dtype=np.int64),
    )


def send(sim: Sim, r: int, num_bytes: float, at_ps: int) -> bool:
    """Begin to move bytes; False where that takes no time."""
    request = sim.requests[r]
    source, sink = sim.lanes[request.prefill_by], sim.lanes[request.decode_by]
    source.moved += num_bytes
    if source.host == sink.host:
        out, into = 3 * source.host, NONE
    else:
        out, into = 3 * source.host + 1, 3 * sink.host + 2
    if num_bytes <= 0 or not np.isfinite(sim.links.bytes_per_ps[out]):
        if request.part != BODY:
            return False
        # As fast as it is produced.
        request.left, request.link_out = 0.0, NONE
        schedule(sim.due, 2 * len(sim.lanes) + r, at_ps + int(np.ceil(num_bytes / request.most)))
        return True
    request.left, request.settled, request.rate = num_bytes, at_ps, 0.0
    if not sim.rules.is_shared:
        request.link_out = NONE
        rate = sim.links.bytes_per_ps[out]
        if request.part == BODY:
            rate = min(rate, request.most)
        schedule(sim.due, 2 * len(sim.lanes) + r, at_ps + int(np.ceil(num_bytes / rate)))
        return True
    request.link_out, request.link_in = out, into
    _attach(sim.links, r, OUT, out)
    if into != NONE:
        _attach(sim.links, r, IN, into)
    _rebalance(sim, out, into, at_ps)
    return True


def unsend(sim: Sim, r: int, at_ps: int) -> None:
    """It has arrived, or nobody wants it any more."""
    request = sim.requests[r]
    cancel(sim.due, 2 * len(sim.lanes) + r)
    if request.link_out == NONE:
        return
    out, into = request.link_out, request.link_in
    _detach(sim.links, r, OUT, out)
    if into != NONE:
        _detach(sim.links, r, IN, into)
    request.link_out = request.link_in = NONE
    _rebalance(sim, out, into, at_ps)


def _attach(ways: Links, r: int, side: int, link: int) -> None:
    following = ways.head[link]
    ways.nexts[r, side], ways.prevs[r, side] = following, NONE
    if following != NONE:
        ways.prevs[following, side] = r
    ways.head[link] = r
    ways.num[link] += 1


def _detach(ways: Links, r: int, side: int, link: int) -> None:
    following, previous = ways.nexts[r, side], ways.prevs[r, side]
    if previous == NONE:
        ways.head[link] = following
    else:
        ways.nexts[previous, side] = following
    if following != NONE:
        ways.prevs[following, side] = previous
    ways.num[link] -= 1


def _side(link: int) -> int:
    """A host's way in is the third of its three; transfers within a host only know a way out."""
    return IN if link % 3 == 2 else OUT


def _rebalance(sim: Sim, out: int, into: int, at_ps: int) -> None:
    """New rates for all that are connected with a way where something has changed."""
    ways = sim.links
    sim.counters[NUM_MARKS] += 1
    mark = sim.counters[NUM_MARKS]
    num_links = _push_link(ways, out, mark, 0)
    if into != NONE:
        num_links = _push_link(ways, into, mark, num_links)
    num_found, seen = 0, 0
    while seen < num_links:
        link = ways.stack[seen]
        seen += 1
        r = ways.head[link]
        while r != NONE:
            request = sim.requests[r]
            if _side(link) == OUT:
                ways.found[num_found] = r
                num_found += 1
                _settle(sim, r, at_ps)
                if request.link_in != NONE:
                    num_links = _push_link(ways, request.link_in, mark, num_links)
            else:
                num_links = _push_link(ways, request.link_out, mark, num_links)
            r = ways.nexts[r, _side(link)]
    _fill(sim, num_links, num_found)
    for n in range(num_found):
        r = ways.found[n]
        request = sim.requests[r]
        span = np.ceil(request.left / request.rate)
        schedule(sim.due, 2 * len(sim.lanes) + r, at_ps + max(0, int(span)))


def _push_link(ways: Links, link: int, mark: int, num_links: int) -> int:
    if ways.marks[link] == mark:
        return num_links
    ways.marks[link] = mark
    ways.stack[num_links] = link
    ways.free[link] = ways.bytes_per_ps[link]
    ways.open[link] = ways.num[link]
    return num_links + 1


def _settle(sim: Sim, r: int, at_ps: int) -> None:
    request = sim.requests[r]
    moved = request.rate * (at_ps - request.settled)
    request.left = max(0.0, request.left - moved)
    request.settled = at_ps
    request.rate = -1.0  # not yet fixed


def _fill(sim: Sim, num_links: int, num_found: int) -> None:
    """Rates of the requests found, over the links found."""
    ways = sim.links
    num_left = num_found
    while num_left:
        share, fullest = NOBODY, NONE
        for n in range(num_links):
            link = ways.stack[n]
            if ways.open[link] and ways.free[link] / ways.open[link] < share:
                share, fullest = ways.free[link] / ways.open[link], link
        capped = False
        for n in range(num_found):
            request = sim.requests[ways.found[n]]
            if request.rate < 0 and request.part == BODY and request.most <= share:
                _fix(sim, ways.found[n], request.most)
                num_left -= 1
                capped = True
        if capped:
            continue
        side = _side(fullest)
        r = ways.head[fullest]
        while r != NONE:
            if sim.requests[r].rate < 0:
                _fix(sim, r, share)
                num_left -= 1
            r = ways.nexts[r, side]


def _fix(sim: Sim, r: int, rate: float) -> None:
    request, ways = sim.requests[r], sim.links
    request.rate = rate
    ways.free[request.link_out] = max(0.0, ways.free[request.link_out] - rate)
    ways.open[request.link_out] -= 1
    if request.link_in != NONE:
        ways.free[request.link_in] = max(0.0, ways.free[request.link_in] - rate)
        ways.open[request.link_in] -= 1
