"""What a router counts: by outcome and by part, bounded in its labels, cheap to keep."""

import asyncio
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.config import RouterConfig
from core.errors import InvalidRequest, Saturated
from core.ids import InstanceId, RequestId
from core.timing import HandoffTiming, PrefillTiming
from router.buckets import Buckets
from router.metrics import Metrics
from router.record import ChoiceRecord, Outcome, RequestRecord
from router.timeline import Timeline
from router.written import WrittenTokens
from tests.router.asking import scrape
from tests.router.conftest import OpenStage, Stage
from tests.router.script import Gate

OK = Outcome("OK", "LENGTH")
NOT_OURS = ("process_", "python_")


class Scraped:
    """Samples of one exposition."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self._values = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._values.get((name, tuple(sorted(labels.items()))))


def record(outcome: Outcome = OK, **fields: object) -> RequestRecord:
    made = RequestRecord(
        request_id=RequestId("r"),
        door="grpc",
        model="m",
        arrived_at_s=10.0,
        arrived_at_unix_s=1e9,
        num_prompt_tokens=7,
        asked_at_s=10.1,
        admitted_at_s=10.2,
        **fields,  # type: ignore[arg-type]
    )
    made.outcome, made.ended_at_s = outcome, 12.0
    return made


def answered(written: WrittenTokens | None = None) -> ChoiceRecord:
    """TTFT 1 s of which the prefill computed 0.5, first gap 0.2 s of which 0.1 was a step."""
    line = Timeline(arrived_at_s=10.0, written=written)
    line.called(10.3)
    line.sampled(InstanceId("p0"), PrefillTiming(compute_s=0.5, num_hit_tokens=4))
    line.handed_over(InstanceId("d0"), HandoffTiming(first_step_s=0.1))
    for at_s in (11.0, 11.2, 11.3):
        line.left(1, at_s)
    choice = ChoiceRecord(index=0, timeline=line, num_attempts=2, lost_reasons=["PEER_LOST"])
    choice.handed_over(HandoffTiming(num_kv_bytes=4096, carrier="shm"))
    choice.handed_over(HandoffTiming(num_kv_bytes=1, carrier="what a peer says"))
    choice.outcome = OK
    return choice


def test_one_request_is_counted_by_what_became_of_it() -> None:
    metrics = Metrics()
    metrics.ended(record(choices=[answered(metrics.written("m"))]))
    seen = scraped_of(metrics)
    ok = {"model": "m", "door": "grpc", "status": "OK", "reason": "LENGTH"}
    assert seen("baton_requests_total", **ok) == 1
    assert seen("baton_attempts_total", model="m") == 2
    assert seen("baton_replacements_total", model="m", reason="PEER_LOST") == 1
    assert seen("baton_prompt_tokens_total", model="m") == 7
    assert seen("baton_output_tokens_total", model="m") == 3
    assert seen("baton_prefix_hit_tokens_total", model="m", source="local") == 4
    assert seen("baton_handoff_kv_bytes_total", model="m", carrier="shm") == 4096
    assert seen("baton_handoff_kv_bytes_total", model="m", carrier="other") == 1


FIGURES = [
    # name                             labels                        sum
    ("baton_ttft_seconds", {}, 1.0),
    ("baton_queue_seconds", {}, 0.3),
    ("baton_first_gap_seconds", {}, 0.2),
    ("baton_tpot_seconds", {}, 0.15),
    ("baton_e2e_seconds", {}, 1.3),
    ("baton_itl_seconds", {}, 0.3),
    ("baton_ttft_part_seconds", {"part": "router_queue"}, 0.3),
    ("baton_ttft_part_seconds", {"part": "prefill_compute"}, 0.5),
    ("baton_ttft_part_seconds", {"part": "network"}, 0.2),
    ("baton_first_gap_part_seconds", {"part": "first_step"}, 0.1),
    ("baton_first_gap_part_seconds", {"part": "network"}, 0.1),
]


@pytest.mark.parametrize(("name", "labels", "sum_s"), FIGURES)
def test_its_time_is_told_whole_and_in_parts(
    name: str, labels: dict[str, str], sum_s: float
) -> None:
    metrics = Metrics()
    metrics.ended(record(choices=[answered(metrics.written("m"))]))
    seen = scraped_of(metrics)
    num = 2 if name == "baton_itl_seconds" else 1
    assert seen(f"{name}_count", model="m", **labels) == num
    assert seen(f"{name}_sum", model="m", **labels) == pytest.approx(sum_s)
    assert seen(f"{name}_bucket", model="m", le="+Inf", **labels) == num


def test_a_refused_request_has_an_outcome_and_no_time() -> None:
    metrics = Metrics()
    metrics.ended(record(Outcome("RESOURCE_EXHAUSTED", "SATURATED")))
    seen = scraped_of(metrics)
    labels = {"model": "m", "door": "grpc", "status": "RESOURCE_EXHAUSTED", "reason": "SATURATED"}
    assert seen("baton_requests_total", **labels) == 1
    assert seen("baton_ttft_seconds_count", model="m") is None
    assert seen("baton_prompt_tokens_total", model="m") is None


def test_tokens_that_leave_together_share_their_gap() -> None:
    gaps = Buckets((0.005, 0.01, 0.02))
    written = WrittenTokens(gaps)
    written.wrote(3, None)
    written.wrote(4, 0.04)
    assert (written.num_tokens, gaps.sum) == (7, 0.04)
    assert gaps.counts == [0, 4, 0, 0], "each is 0.01 s"


BUCKETS = [
    # value, bucket: upper bounds belong to their bucket, as Prometheus has it
    (0.0, 0),
    (1.0, 0),
    (1.1, 1),
    (2.0, 1),
    (9.9, 2),
]


@pytest.mark.parametrize(("value", "bucket"), BUCKETS)
def test_each_value_is_in_one_bucket(value: float, bucket: int) -> None:
    buckets = Buckets((1.0, 2.0))
    buckets.observe(value)
    assert [i for i, num in enumerate(buckets.counts) if num] == [bucket]
    assert buckets.sum == value
    assert list(buckets.cumulative())[-1] == ("+Inf", 1)


ACCEPTS = [
    (None, "text/plain; version=0.0.4; charset=utf-8"),
    ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
    ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
]


@pytest.mark.parametrize(("accept", "begins"), ACCEPTS)
def test_the_format_is_what_the_scraper_asks_for(accept: str | None, begins: str) -> None:
    data, content_type = Metrics().exposition(accept)
    assert content_type.startswith(begins)
    assert data.endswith(b"# EOF\n") is ("openmetrics" in begins)


def scraped_of(metrics: Metrics) -> Scraped:
    return Scraped(metrics.exposition(None)[0].decode())


async def scraped(on: Stage) -> Scraped:
    return Scraped(await scrape(on))


async def test_a_router_tells_of_its_instances_and_pools(stage: OpenStage) -> None:
    on = await stage("ppd")
    on["d0"].load.num_free_blocks = 64
    on["d0"].load.num_swapped = 2
    await on.client.complete("w5 w6", max_tokens=4)
    seen = await scraped(on)
    d0 = {"instance": "d0", "pool": "decode", "model": "fake"}
    assert seen("baton_instance_connected", **d0) == 1
    assert seen("baton_instance_blocks", **d0) == 256
    assert seen("baton_instance_free_blocks", **d0) == 64
    assert seen("baton_instance_swapped_requests", **d0) == 2
    assert seen("baton_pool_instances", pool="prefill") == 2
    assert seen("baton_pool_utilisation_ratio", pool="decode") == 0.75
    assert seen("baton_pool_wanted_instances", pool="decode") == 2
    assert seen("baton_pool_wanted_instances", pool="mixed") is None
    assert seen("baton_requests_running") == 0
    assert seen("baton_output_tokens_total", model="fake") == 4


async def test_labels_are_bounded_whatever_clients_say(stage: OpenStage) -> None:
    on = await stage("pd")
    for i in range(3):
        with pytest.raises(InvalidRequest):
            await on.client.complete("", request_id=f"r{i}", tenant=f"t{i}")
    text = (await scraped(on)).text
    lines = [line for line in text.splitlines() if line.startswith("baton_requests_total{")]
    want = '{door="grpc",model="fake",reason="INVALID_REQUEST",status="INVALID_ARGUMENT"} 3.0'
    assert lines == [f"baton_requests_total{want}"]


async def test_names_are_as_prometheus_wants_them(stage: OpenStage) -> None:
    on = await stage("pdm")
    await on.client.complete("w5", max_tokens=3)
    seen = await scraped(on)
    for family in seen.families:
        if family.name.startswith(NOT_OURS):
            continue
        assert family.name.startswith("baton_")
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_s", "_count", "_sum", "_bucket", "_created"))
        assert ":" not in family.name
    if promtool := shutil.which("promtool"):
        checked = subprocess.run(  # noqa: ASYNC221 - a test, and it takes milliseconds
            [promtool, "check", "metrics"],
            input=seen.text,
            text=True,
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


async def test_a_full_router_says_so(stage: OpenStage) -> None:
    on = await stage("pd", config=RouterConfig(max_running=1, max_queued=1))
    gate = on["p0"].script.prefill_gate = Gate()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(on.client.complete("w5", max_tokens=2))
        await gate.wait_reached()
        second = group.create_task(on.client.complete("w6", max_tokens=2))
        seen = await scraped(on)
        while not seen("baton_requests_queued"):
            seen = await scraped(on)
        assert (seen("baton_requests_running"), seen("baton_requests_queued")) == (1, 1)
        with pytest.raises(Saturated):
            await on.client.complete("w7")
        gate.open.set()
    assert (len(first.result()), len(second.result())) == (1, 1)
    labels = {"model": "", "door": "grpc", "status": "RESOURCE_EXHAUSTED", "reason": "SATURATED"}
    assert (await scraped(on))("baton_requests_total", **labels) == 1
