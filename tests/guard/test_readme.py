"""What the README tells people to type is there."""

import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def commands(root: Path) -> list[str]:
    """The lines of the README's shell blocks."""
    text = (root / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|bash|console|shell)\n(.*?)^```", text, flags=re.M | re.S)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def targets(root: Path) -> set[str]:
    return set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(encoding="utf-8"), re.M))


def test_every_make_target_exists(commands: list[str], targets: set[str]) -> None:
    named = {name for line in commands for name in re.findall(r"\bmake ([a-z]+)", line)}
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_script_and_module_exists(root: Path, commands: list[str]) -> None:
    text = "\n".join(commands)
    missing = [name for name in re.findall(r"\bsh (tools/\S+)", text) if not (root / name).exists()]
    for name in re.findall(r"-m ((?:bench|deploy|tools|cli)[\w.]*)", text):
        path = root / name.replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            missing.append(name)
    assert missing == []


def test_names_the_plain_command_for_those_without_make(commands: list[str]) -> None:
    assert any("sh tools/setup" in line for line in commands)
