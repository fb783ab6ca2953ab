"""The loop: from moment to moment, and within a moment always in the same order.

1. Steps end, by lane; transfers end, by request.
2. Instances are lost, come back, change their role; requests arrive.
3. Those whose prompt is read, those who lost their instance and those who came are placed.
4. Those that wait for room get it, first come first served; lanes that have nothing to do take
   answers in and put others off, until nobody waits for what that frees.
5. They begin their next step, by lane.
"""

from planner.sim.advance import advance, go_on
from planner.sim.place import decide
from planner.sim.state import NOW, Sim


def run(sim: Sim) -> None:
    """Until all requests have ended, or too many have missed their limits."""
    while advance(sim):
        at_ps = sim.counters[NOW]
        for n in range(sim.ready[-1]):
            decide(sim, sim.ready[n], at_ps)
        sim.ready[-1] = 0
        go_on(sim, at_ps)
