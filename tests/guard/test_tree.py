"""Rules about files: where they are, how long they are, what they may not mention."""

import re
from pathlib import Path

MAX_LINES = 400

# Spelled in two halves, or this file would be the first to break the rule.
FOREIGN = (
    *("/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/", "/Us" + "ers/"),
    *("pypi" + ".org", "python" + "hosted.org", "download.py" + "torch.org"),
)


def test_proto_is_never_a_package(project_files: list[Path]) -> None:
    # The import name belongs to proto-plus, which some of our dependencies pull in.
    assert [p for p in project_files if p.parts[0] == "proto" and p.suffix != ".proto"] == []


def test_no_file_names_a_machine_or_an_index(root: Path, project_files: list[Path]) -> None:
    found = []
    for path in project_files:
        text = (root / path).read_bytes().decode(errors="replace")
        found += [f"{path}: {word}" for word in FOREIGN if word in text]
    assert found == []


def test_files_are_short(root: Path, python_files: list[Path]) -> None:
    lengths = {p: len((root / p).read_text(encoding="utf-8").splitlines()) for p in python_files}
    assert {p: n for p, n in lengths.items() if n > MAX_LINES} == {}


def test_every_module_says_what_it_owns(root: Path, python_files: list[Path]) -> None:
    silent = []
    for path in python_files:
        text = (root / path).read_text(encoding="utf-8").strip()
        if text and not text.startswith(('"""', 'r"""')):
            silent.append(path)
    assert silent == []


def test_no_todo_without_an_issue(root: Path, python_files: list[Path]) -> None:
    bare = re.compile(r"#.*\b(?:TO" + r"DO|FIX" + r"ME)\b(?!.*#\d)")
    found = [
        f"{path}:{number}"
        for path in python_files
        for number, line in enumerate((root / path).read_text(encoding="utf-8").splitlines(), 1)
        if bare.search(line)
    ]
    assert found == []
