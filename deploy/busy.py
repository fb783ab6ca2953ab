"""A busy neighbour: matrix products until standard input ends, which it does with its parent.

python -m deploy.busy [DEVICE]
"""

import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from core.errors import PeerLost

SIZE = 1024
"""A product takes tens of milliseconds on one core: often enough to see that it is over."""
PRODUCTS_AT_ONCE = 8
"""On a GPU, queued before the next wait."""
START_TIMEOUT_S = 60.0  # torch and its GPU context, on a disk that has not seen them yet
END_TIMEOUT_S = 10.0  # a product and the interpreter's exit


@contextmanager
def busy_neighbours(num_processes: int, device: str) -> Iterator[None]:
    """Keep as many cores, or the GPU, busy until the block ends, however it ends."""
    with ExitStack() as stack:
        for _ in range(num_processes):
            stack.enter_context(_neighbour(device))
        yield


@contextmanager
def _neighbour(device: str) -> Iterator[None]:
    # One core each, whichever library the products come from.
    one_thread = ("OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1", "MKL_NUM_THREADS=1")
    process = subprocess.Popen(
        ["/usr/bin/env", *one_thread, sys.executable, "-m", "deploy.busy", device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
        if not ready or not process.stdout.readline():
            raise PeerLost(f"the busy neighbour did not start within {START_TIMEOUT_S:.0f} s")
        yield
        if process.poll() is not None:
            raise PeerLost(f"the busy neighbour ended early, with status {process.returncode}")
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        process.stdout.close()


def multiply_until_end(device: str) -> None:
    """Says one line once it has begun."""
    product = _host_product() if device == "cpu" else _device_products(device)
    product()
    sys.stdout.write("busy\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0)[0]:
        product()


def _host_product() -> Callable[[], None]:
    matrix = np.ones((SIZE, SIZE), dtype=np.float32)
    out = np.empty_like(matrix)

    def product() -> None:
        np.matmul(matrix, matrix, out=out)

    return product


def _device_products(device: str) -> Callable[[], None]:
    # Here and not above: on a CPU it starts without torch.
    import torch

    matrix = torch.ones((4 * SIZE, 4 * SIZE), device=device)

    def products() -> None:
        for _ in range(PRODUCTS_AT_ONCE):
            torch.matmul(matrix, matrix)
        torch.cuda.synchronize(device)

    return products


if __name__ == "__main__":
    multiply_until_end(sys.argv[1] if len(sys.argv) > 1 else "cpu")
