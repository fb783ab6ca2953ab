"""Whole batches against a router over scripted instances."""

import json
from pathlib import Path

from router.batch.journal import open_journal
from router.batch.lines import BatchLine
from router.batch.run import BatchOptions, Summary, run_batch
from tests.router.fake_model import expected
from tests.router.http.conftest import OpenWeb, Web, words


def line(custom_id: str, prompt: list[int], **body: object) -> BatchLine:
    fields = {"prompt": prompt, "max_tokens": 3, "seed": 1} | body
    return BatchLine(custom_id, "/v1/completions", fields)


async def run(site: Web, path: Path, lines: list[BatchLine]) -> Summary:
    options = BatchOptions(base_url=site.url(""), max_in_flight=4)
    with open_journal(path) as journal:
        return await run_batch(lines, journal, options)


def answers(path: Path) -> dict[str, str]:
    records = [json.loads(text) for text in path.read_text().splitlines()]
    assert len({record["custom_id"] for record in records}) == len(records)
    return {
        record["custom_id"]: record["response"]["body"]["choices"][0]["text"]
        for record in records
        if record["response"]["status_code"] == 200
    }


async def test_every_line_is_answered_once(web: OpenWeb, tmp_path: Path) -> None:
    site = await web("pdd")
    lines = [line(f"{i}", [i % 3 + 1] * 70 + [i + 1]) for i in range(30)]
    summary = await run(site, tmp_path / "out", lines)
    assert (summary.num_good, summary.num_refused, summary.num_unanswered) == (30, 0, 0)
    want = {one.custom_id: words(expected(one.body["prompt"], 3, seed=1)) for one in lines}
    assert answers(tmp_path / "out") == want
    # Batches stand behind everybody else.
    assert {prefill.work.priority for prefill in site.on["p0"].prefills} == {-10}
    again = await run(site, tmp_path / "out", lines)
    assert again.num_good == 0
    assert answers(tmp_path / "out") == want


async def test_what_is_refused_is_an_answer_too(web: OpenWeb, tmp_path: Path) -> None:
    site = await web("pd")
    lines = [line("good", [5]), line("bad", [5], n=99)]
    summary = await run(site, tmp_path / "out", lines)
    assert (summary.num_good, summary.num_refused) == (1, 1)
    assert summary.errors == {"invalid_request": 1}
    assert set(answers(tmp_path / "out")) == {"good"}


async def test_prefixes_come_first(web: OpenWeb, tmp_path: Path) -> None:
    site = await web("pd")
    lines = [line(f"{i}", [1] * 70 + [i + 2]) for i in range(5)]
    await run(site, tmp_path / "out", list(reversed(lines)))
    first, *others = site.on["p0"].prefills
    assert first.work.prompt_token_ids[-1] == 2
    assert len(others) == 4
