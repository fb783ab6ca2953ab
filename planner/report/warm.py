"""Whether the simulator is machine code already, and making it so before anybody waits for it."""

from pathlib import Path

import numpy as np

from planner.sim.simulate import machine_code, simulate
from planner.sim.spec import Cluster
from planner.sim.traffic import traffic

COMPILING = "compiling the simulator, once: about a minute"


def is_compiled(cluster: Cluster) -> bool:
    """Whether an earlier run, of whatever process, has left it on disk."""
    return any(Path(machine_code(cluster).stats.cache_path).glob("*.nbc"))


def warm_up(cluster: Cluster) -> None:
    """One request; threads that start together would each compile it."""
    one = np.ones(1, dtype=np.int64)
    simulate(cluster, traffic(np.zeros(1), one, one))
