"""Random numbers that depend on their key alone, never on a generator's past."""

_MASK = 2**64 - 1


def uniform(seed: int, child_index: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, keyed by all three arguments."""
    state = _mix(seed)
    state = _mix(state ^ child_index)
    state = _mix(state ^ position)
    return (state >> 11) * 2.0**-53


def _mix(value: int) -> int:
    """splitmix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
