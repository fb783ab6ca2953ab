"""The engine's tiny model, for its tests on a CUDA device."""

from tests.engine.conftest import tiny

__all__ = ["tiny"]
