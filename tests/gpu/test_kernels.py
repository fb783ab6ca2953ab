"""The Triton kernels, compiled and run on the device, against plain torch; graphs too."""

from pathlib import Path

import pytest
import torch

from tests.engine.cuda.running import checks_in, run_checks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FOLDER = Path(__file__).parents[1] / "engine" / "cuda"


def test_on_the_device() -> None:
    """What the interpreter is asked elsewhere; in a process without it."""
    names = [name for name in checks_in(FOLDER) if name != "compiled"]
    run_checks(FOLDER, names, {"TRITON_INTERPRET": "0"})
