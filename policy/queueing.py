"""DistServe's closed forms for prefill (section 3.1): mean TTFT in queues with equal prompts.

Poisson arrivals at one instance, one service time: M/D/1. With n instances that share the
arrivals evenly, `rate_per_s` is a share of 1/n.
"""


def single_ttft_s(service_s: float, rate_per_s: float) -> float:
    """One GPU: the service time and the mean wait of M/D/1."""
    _check(service_s, rate_per_s)
    return service_s + rate_per_s * service_s**2 / (2 * (1 - rate_per_s * service_s))


def inter_op_ttft_s(service_s: float, rate_per_s: float) -> float:
    """Two pipeline stages: one prompt takes as long, the slower stage is free after half of it."""
    _check(service_s / 2, rate_per_s)
    return service_s + rate_per_s * service_s**2 / (4 * (2 - rate_per_s * service_s))


def intra_op_ttft_s(service_s: float, rate_per_s: float, speed_up: float) -> float:
    """Two tensor-parallel ranks, `speed_up` (1 to 2) times as fast as one."""
    _check(service_s / speed_up, rate_per_s)
    wait_s = rate_per_s * service_s**2 / (2 * speed_up * (speed_up - rate_per_s * service_s))
    return service_s / speed_up + wait_s


def _check(busy_s: float, rate_per_s: float) -> None:
    assert rate_per_s * busy_s < 1, f"{rate_per_s} requests/s of {busy_s} s each never end"
