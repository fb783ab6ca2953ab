"""Files of traces: those formats that there are, and what is said of others."""

import gzip
from pathlib import Path

import pytest

from bench.load.trace import read_lengths, read_trace
from core.errors import ConfigError

AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9805900,396,109
2023-11-16 18:15:47.1805900,879,0
"""
MOONCAKE = """\
{"timestamp": 500, "input_length": 600, "output_length": 52, "hash_ids": [4, 5]}

{"timestamp": 3500, "input_length": 1000, "output_length": 26, "hash_ids": [4, 6]}
"""
PLAIN = "arrival_s,prompt_tokens,output_tokens\n3,10,20\n4.5,30,40\n"
LENGTHS = "prompt_len,output_len\n142,137\n"
BARE = "prompt_tokens,output_tokens\n1,2\n3,4\n"

TRACES = [
    # name               text      (at, prompt, output, hashes)
    ("a.csv", AZURE, [(0.0, 374, 44, ()), (0.5, 879, 1, ()), (4.3, 396, 109, ())]),
    ("m.jsonl", MOONCAKE, [(0.0, 600, 52, (4, 5)), (3.0, 1000, 26, (4, 6))]),
    ("p.csv", PLAIN, [(0.0, 10, 20, ()), (1.5, 30, 40, ())]),
]
Row = tuple[float, int, int, tuple[int, ...]]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "text", "want"), TRACES, ids=[c[0] for c in TRACES])
def test_traces(name: str, text: str, want: list[Row], tmp_path: Path) -> None:
    rows = read_trace(written(tmp_path, name, text))
    assert [row.at_s for row in rows] == pytest.approx([each[0] for each in want])
    assert [(row.num_prompt_tokens, row.num_output_tokens, row.block_hashes) for row in rows] == [
        each[1:] for each in want
    ]


def test_a_packed_trace(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress(MOONCAKE.encode()))
    assert read_trace(path) == read_trace(written(tmp_path, "m.jsonl", MOONCAKE))


PAIRS = [
    ("l.csv", LENGTHS, [(142, 137)]),
    ("b.csv", BARE, [(1, 2), (3, 4)]),
    ("m.jsonl", MOONCAKE, [(600, 52), (1000, 26)]),
    ("a.csv", AZURE, [(374, 44), (396, 109), (879, 1)]),
]


@pytest.mark.parametrize(("name", "text", "want"), PAIRS, ids=[c[0] for c in PAIRS])
def test_lengths(name: str, text: str, want: list[tuple[int, int]], tmp_path: Path) -> None:
    assert read_lengths(written(tmp_path, name, text)) == want


REFUSED = [
    # id                    name     text                                       says
    ("empty", "e.csv", "", "holds no request"),
    ("a head alone", "h.csv", PLAIN.splitlines()[0], "holds no request"),
    ("other columns", "o.csv", "a,b\n1,2\n", "columns a, b; known are: TIMESTAMP, ContextTokens"),
    ("no moments", "l.csv", LENGTHS, "known are"),
    ("no number", "n.csv", PLAIN + "5,many,6\n", "record 3: prompt_tokens and output_tokens must"),
    ("no moment", "w.csv", PLAIN + "soon,5,6\n", "record 3: arrival_s and hash ids must be"),
    ("a short row", "s.csv", PLAIN + "5\n", "record 3: "),
    ("no JSON", "j.jsonl", "{", "cannot be read as a trace"),
    ("no object", "j.jsonl", "[1]", "no JSON object"),
    ("not packed", "g.csv.gz", PLAIN, "cannot be read as a trace"),
]


@pytest.mark.parametrize(
    ("name", "text", "says"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_what_is_no_trace(name: str, text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        read_trace(written(tmp_path, name, text))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read as a trace: .*No such file"):
        read_trace(tmp_path / "nowhere.csv")
