"""The clusters and the oracle of the end-to-end tests."""

from tests.e2e.conftest import _nothing_left, tiny_dir, tiny_oracle, tiny_pools

__all__ = ["_nothing_left", "tiny_dir", "tiny_oracle", "tiny_pools"]
