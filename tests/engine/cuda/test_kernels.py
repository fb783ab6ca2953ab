"""The kernels of `engine.cuda`, through Triton's interpreter and through its compiler."""

from pathlib import Path

import pytest

from tests.engine.cuda.running import checks_in, run_checks

pytest.importorskip("triton")

FOLDER = Path(__file__).parent
# So that the interpreter runs on CPU tensors where there is a GPU, too; one thread, as a worker.
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def test_interpreted() -> None:
    """Every kernel computes what plain torch does."""
    names = [name for name in checks_in(FOLDER) if name != "compiled"]
    run_checks(FOLDER, names, WITHOUT_GPU | {"TRITON_INTERPRET": "1"})


def test_compiled(tmp_path: Path) -> None:
    """Every kernel compiles for the GPUs we mean: the interpreter takes more than that does."""
    own = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run_checks(FOLDER, ["compiled"], WITHOUT_GPU | own)
