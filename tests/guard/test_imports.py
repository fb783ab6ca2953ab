"""The two floors whose rule is a list of what is allowed; import-linter holds the others."""

import ast
import sys
from pathlib import Path

import pytest

CASES = [
    # package, what it may import besides itself and the standard library
    ("core", set()),
    ("policy", {"core", "numpy", "numba"}),
]


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(("package", "allowed"), CASES, ids=[c[0] for c in CASES])
def test_imports_only_what_is_allowed(
    package: str, allowed: set[str], package_trees: dict[Path, ast.Module]
) -> None:
    allowed = allowed | {package} | set(sys.stdlib_module_names)
    found = {
        str(path): extra
        for path, tree in package_trees.items()
        if path.parts[0] == package and (extra := imported(tree) - allowed)
    }
    assert found == {}
