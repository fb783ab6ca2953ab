"""What every test gets."""

import importlib.util

import hypothesis
import pytest

# Examples take as long as a shared machine lets them; a printed blob reproduces a failure.
hypothesis.settings.register_profile("baton", deadline=None, print_blob=True)
hypothesis.settings.load_profile("baton")


def pytest_addoption(parser: pytest.Parser) -> None:
    if importlib.util.find_spec("pytest_asyncio") is None:
        # A GPU machine may lack the plugin: its tests need no event loop, but its settings are
        # in pyproject.toml, where an unknown one is an error.
        for name in ("mode", "default_fixture_loop_scope", "default_test_loop_scope"):
            parser.addini(f"asyncio_{name}", "of pytest-asyncio, which is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch  # slow, and most runs have no such test

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
