"""`baton batch` as a program: shared prefixes computed once; killed halfway, nothing lost."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import http_address
from tests.e2e.running import RunningCluster

pytestmark = pytest.mark.ray

NUM_REQUESTS, NUM_PREFIXES, PREFIX_TOKENS, OWN_TOKENS = 500, 10, 128, 8
TIMEOUT_S = 240.0
MOST = 1.1
"""Times that the prefixes' tokens are computed."""


def _write(path: Path, seed: int) -> None:
    """Requests in random order; prefixes are whole blocks of 16 tokens."""
    rng = random.Random(seed)
    prefixes = [_tokens(rng, PREFIX_TOKENS) for _ in range(NUM_PREFIXES)]
    lines = [
        {
            "custom_id": f"{i}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {
                "prompt": prefixes[i % NUM_PREFIXES] + _tokens(rng, OWN_TOKENS),
                "max_tokens": 4,
                "temperature": 0,
                "ignore_eos": True,
            },
        }
        for i in range(NUM_REQUESTS)
    ]
    rng.shuffle(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _tokens(rng: random.Random, num: int) -> list[int]:
    return [rng.randrange(3, 512) for _ in range(num)]


def _command(site: RunningCluster, source: Path, target: Path) -> list[str]:
    program = [sys.executable, "-c", "from cli.main import app; app()", "batch"]
    return [*program, str(source), str(target), "--address", http_address(site), "--json"]


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _check_complete(records: Sequence[dict[str, Any]]) -> None:
    assert sorted(int(record["custom_id"]) for record in records) == list(range(NUM_REQUESTS))
    assert {record["response"]["status_code"] for record in records} == {200}


def test_prefixes_are_computed_once(site: RunningCluster, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    _write(source, seed=1)
    done = subprocess.run(
        _command(site, source, target), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["num_good"] == NUM_REQUESTS
    records = _records(target)
    _check_complete(records)
    computed = sum(_computed(records))
    times = computed / (NUM_PREFIXES * PREFIX_TOKENS)
    print(f"prefix tokens computed {times:.3f} times once each")
    assert times <= MOST


def _computed(records: Sequence[dict[str, Any]]) -> Iterator[int]:
    for record in records:
        cached = record["response"]["body"]["usage"]["prompt_tokens_details"]["cached_tokens"]
        yield max(0, PREFIX_TOKENS - cached)


def test_killed_halfway_and_resumed(site: RunningCluster, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    _write(source, seed=2)
    command = _command(site, source, target)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        _wait_for_lines(target, NUM_REQUESTS // 2, first)
        first.send_signal(signal.SIGKILL)
    before = target.read_bytes()
    assert NUM_REQUESTS // 2 <= before.count(b"\n") < NUM_REQUESTS
    # As a crash in the middle of a write leaves it.
    target.write_bytes(before + b'{"id": "batch_req_')
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_before"] == before.count(b"\n")
    assert target.read_bytes().startswith(before)
    _check_complete(_records(target))


def _wait_for_lines(path: Path, num: int, process: "subprocess.Popen[bytes]") -> None:
    """Another process writes them: there is no event to wait for."""
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= num:
            return
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"it ended before {num} lines, status {process.returncode}")
