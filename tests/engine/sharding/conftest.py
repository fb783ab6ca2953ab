"""Checkpoints, written once per session."""

import pytest

from tests.engine.architectures import Architectures
from tests.engine.sharding.checkpoints import Variants


@pytest.fixture(scope="session")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Architectures:
    """One of each kind."""
    return Architectures(tmp_path_factory.mktemp("sharded-architectures"))


@pytest.fixture(scope="session")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """Those of this folder."""
    return Variants(tmp_path_factory.mktemp("variants"))
