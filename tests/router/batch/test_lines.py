"""Batch files: what is read, what is refused, what survives a crash."""

import json
from pathlib import Path

import pytest

from core.errors import ConfigError
from router.batch.journal import JournalError, open_journal
from router.batch.lines import read_lines

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}

BAD = [
    # id, line, what is said
    ("no JSON", "{", "line 1: no JSON"),
    ("no object", "[]", "line 1: must be an object"),
    ("no id", json.dumps(GOOD | {"custom_id": 1}), "line 1: custom_id"),
    ("method", json.dumps(GOOD | {"method": "GET"}), "line 1: method must be POST"),
    ("url", json.dumps(GOOD | {"url": "/v1/embeddings"}), "line 1: url must be"),
    ("body", json.dumps(GOOD | {"body": []}), "line 1: body must be an object"),
    ("stream", json.dumps(GOOD | {"body": {"stream": True}}), "line 1: body.stream"),
]


@pytest.mark.parametrize(("line", "said"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_problems_are_told_by_line(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_lines([line])
    [problem] = refused.value.problems
    assert problem.startswith(said)


def test_all_problems_at_once_but_not_thousands() -> None:
    with pytest.raises(ConfigError) as refused:
        read_lines(["{"] * 100)
    assert len(refused.value.problems) == 21
    assert refused.value.problems[-1] == "and 80 more"


def test_ids_are_unique() -> None:
    with pytest.raises(ConfigError, match="line 3: the custom_id of line 1"):
        read_lines([json.dumps(GOOD), "", json.dumps(GOOD)])


def test_prompts_of_all_kinds_keep_what_they_share() -> None:
    bodies = [
        {"prompt": [5, 6, 7]},
        {"prompt": [5, 6, 8]},
        {"messages": [{"role": "system", "content": "long"}, {"role": "user", "content": "a"}]},
        {"messages": [{"role": "system", "content": "long"}, {"role": "user", "content": "b"}]},
    ]
    lines = [json.dumps(GOOD | {"custom_id": str(i), "body": b}) for i, b in enumerate(bodies)]
    prompts = [line.prompt for line in read_lines(lines)]
    assert prompts[0][:-1] == prompts[1][:-1]
    assert prompts[2][:-1] == prompts[3][:-1]


def test_a_cut_off_line_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with open_journal(path) as journal:
        journal.add({"custom_id": "a"})
        journal.add({"custom_id": "b"})
    path.write_bytes(path.read_bytes()[:-3])
    with open_journal(path) as journal:
        assert journal.done == {"a"}
        journal.add({"custom_id": "b"})
    lines = path.read_text().splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["a", "b"]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with open_journal(path), pytest.raises(JournalError, match="another batch"):
        open_journal(path).__enter__()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with pytest.raises(JournalError, match="line 1"):
        open_journal(path).__enter__()
    assert path.read_text() == "dear diary\n"
