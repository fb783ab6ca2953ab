"""Law 6: nothing that a socket delivers is ever run, so nothing that could run it is here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    # Both pickle what they carry.
    *("multiprocessing.connection", "multiprocessing.managers"),
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
# torch.distributed pickles objects, as opposed to tensors.
OBJECT_COLLECTIVES = {
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"),
    *("send_object_list", "recv_object_list"),
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def modules(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def dangers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names = modules(node)
        yield from (f"{node.lineno}: import {m}" for m in names & (MODULES | CALLS))  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        last = name.rpartition(".")[2]
        if name in BUILTINS | CALLS or last in OBJECT_COLLECTIVES:
            yield f"{node.lineno}: {name}"
        if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
            yield f"{node.lineno}: {name}(allow_pickle)"


def test_no_package_can_run_what_it_receives(package_trees: dict[Path, ast.Module]) -> None:
    found = [f"{path}:{danger}" for path, tree in package_trees.items() for danger in dangers(tree)]
    assert found == []


CASES = [
    # id                    source                                             caught
    ("import", "import pickle", True),
    ("from import", "from marshal import loads", True),
    ("member import", "from multiprocessing import connection", True),
    ("renamed", "from torch import load as read", True),
    ("builtin", "eval(text)", True),
    ("torch", "torch.load(path)", True),
    ("collective", "dist.broadcast_object_list(batch)", True),
    ("numpy", "np.load(path, allow_pickle=True)", True),
    ("a model's eval mode", "model.eval()", False),
    ("a pattern", "re.compile(text)", False),
    ("plain numpy", "np.frombuffer(data)", False),
]


@pytest.mark.parametrize(("source", "caught"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_the_rule_sees(source: str, caught: bool) -> None:
    assert bool(list(dangers(ast.parse(source)))) == caught
