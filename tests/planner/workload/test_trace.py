"""Files of traces: those formats that there are, and what is said of others."""

import gzip
import logging
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.logs import JsonLines
from planner.workload.trace import has_moments, read_lengths, read_trace

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
BENCH = """\
rate_per_s,at_s,counted,late_s,error,num_prompt_tokens,max_tokens,num_output_tokens,ttft_s
2.0,0.5,0,0.0,,100,8,7,0.1
2.0,0.75,1,0.0,DEADLINE_PASSED,60,9,3,
"""
SPLITWISE = """\
request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size
0,2,0,1,1,4096,32
1,2,0,3,1,2048,8
"""
SIMDISTSERVE = """\
[{"start_time": 0.0, "prompt_len": 374, "output_len": 44},
 {"start_time": 4.25, "prompt_len": 396, "output_len": 109}]
"""


def log_line(at_s: float, message: str, *args: object) -> str:
    """As a router writes it."""
    record = logging.LogRecord("router.choice", logging.INFO, "f.py", 1, message, args, None)
    record.created = 1.7e9 + at_s
    return JsonLines().format(record) + "\n"


ADMITTED = "admitted request_id=%s num_prompt_tokens=%d num_choices=%d epoch=%d"
OVER = "over handoff_id=%s state=%s why=%s num_tokens=%d attempts=%d"
ROUTER = "".join(
    (
        log_line(0.0, "drain asked for timeout_s=%g", 30.0),
        log_line(1.0, OVER, "before/0", "finished", "STOP", 4, 1),
        log_line(2.0, ADMITTED, "a", 300, 2, 0),
        log_line(3.5, ADMITTED, "b", 40, 1, 0),
        log_line(4.0, OVER, "b/0", "finished", "LENGTH", 16, 1),
        log_line(5.0, OVER, "a/1", "finished", "STOP", 20, 1),
        log_line(6.0, ADMITTED, "running", 9, 1, 0),
        log_line(7.0, OVER, "a/0", "failed", "PEER_LOST", 10, 3),
    )
)

TRACES = [
    # name               text      (at, prompt, output, hashes)
    ("a.csv", AZURE, [(0.0, 374, 44, ()), (0.5, 879, 1, ()), (4.3, 396, 109, ())]),
    ("m.jsonl", MOONCAKE, [(0.0, 600, 52, (4, 5)), (3.0, 1000, 26, (4, 6))]),
    ("p.csv", PLAIN, [(0.0, 10, 20, ()), (1.5, 30, 40, ())]),
    ("b.csv", BENCH, [(0.0, 100, 7, ()), (0.25, 60, 9, ())]),
    ("s.csv", SPLITWISE, [(0.0, 4096, 32, ()), (2.0, 2048, 8, ())]),
    ("d.json", SIMDISTSERVE, [(0.0, 374, 44, ()), (4.25, 396, 109, ())]),
    ("r.log", ROUTER, [(0.0, 300, 20, ()), (0.0, 300, 10, ()), (1.5, 40, 16, ())]),
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
    ("r.log", ROUTER, [(40, 16), (300, 20), (300, 10)]),
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
    ("no time at all", "w.csv", PLAIN + "nan,5,6\n", "record 3: arrival_s and hash ids must be"),
    ("two runs", "b.csv", BENCH + "4.0,0.1,1,0.0,,5,6,6,\n", "holds 2 runs, a trace is one"),
    ("nothing ended", "r.log", log_line(0.0, ADMITTED, "a", 3, 1, 0), "admitted and ended"),
    ("another log", "r.log", log_line(0.0, "over and out"), "is no log of a router: KeyError"),
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


@pytest.mark.parametrize(
    ("name", "text"), [*(case[:2] for case in TRACES), ("l.csv", LENGTHS), ("b.csv", BARE)]
)
def test_moments_are_told_from_the_head_alone(name: str, text: str, tmp_path: Path) -> None:
    assert has_moments(written(tmp_path, name, text)) == (text not in (LENGTHS, BARE))


def test_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress(MOONCAKE.encode())[:-9])
    with pytest.raises(ConfigError, match="cannot be read as a trace"):
        read_trace(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read as a trace: .*No such file"):
        read_trace(tmp_path / "nowhere.csv")
