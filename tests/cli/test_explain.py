"""`baton explain` draws whatever a router may say: bars that lie where their spans do."""

import io

import pytest
from rich.console import Console

from cli.explain import BAR_CHARS, picture, seconds
from rpc.pb.cluster_pb2 import (
    ExplainedAttempt,
    ExplainedChoice,
    ExplainedLoss,
    ExplainedSpan,
    ExplainReply,
)

WIDTH = 100


def drawn(reply: ExplainReply) -> list[str]:
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, markup=False)
    console.print(picture(reply))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def span(name: str, start_s: float, duration_s: float, part_of: str = "ttft") -> ExplainedSpan:
    return ExplainedSpan(name=name, part_of=part_of, start_s=start_s, duration_s=duration_s)


def placed_twice() -> ExplainReply:
    loss = ExplainedLoss(at_s=0.3, reason="PEER_LOST", message="p0 lost: [reset]")
    return ExplainReply(
        request_id="it",
        reason="LENGTH",
        verdict="TTFT 1.5 s, 1.2 s of it prefill queue",
        choices=[
            ExplainedChoice(
                spans=[
                    span("router_queue", 0.0, 0.5),
                    span("reading", 0.0, 0.25, "router_queue"),
                    span("prefill_queue", 0.5, 0.5),
                    span("network", 1.0, 0.0),
                    span("decode", 1.0, 1.0, "rest"),
                ],
                num_attempts=7,
                attempts=[
                    ExplainedAttempt(
                        number=6,
                        prefill_instance_id="p0",
                        reasons=["prefill p0: 2 able", "prefill p0: slo: score 1"],
                        losses=[loss],
                    ),
                    ExplainedAttempt(number=7, prefill_instance_id="p1", decode_instance_id="d0"),
                ],
            )
        ],
    )


def test_the_verdict_comes_first_and_bars_lie_where_spans_do() -> None:
    lines = drawn(placed_twice())
    assert lines[0] == "TTFT 1.5 s, 1.2 s of it prefill queue"
    bars = {line.strip().split("  ")[0]: line for line in lines if "█" in line}
    assert list(bars) == ["router queue", "reading", "prefill queue", "decode"]
    half, quarter = BAR_CHARS // 2, BAR_CHARS // 4
    assert [bars[name].count("█") for name in bars] == [quarter, quarter // 2, quarter, half]
    assert bars["prefill queue"].index("█") == bars["router queue"].index("█") + quarter
    assert not any("network" in line for line in lines), "it took no time"


def test_attempts_and_why_they_ended() -> None:
    text = "\n".join(drawn(placed_twice()))
    for words in ("5 earlier", "p0: 2 able, slo: score 1", "PEER_LOST: p0 lost: [reset]", "300 ms"):
        assert words in text


def test_a_refused_request_has_no_choice_and_is_drawn() -> None:
    reply = ExplainReply(request_id="it", reason="SATURATED", verdict="refused after 1 ms")
    reply.spans.append(span("reading", 0.0, 0.001, "no_token"))
    text = "\n".join(drawn(reply))
    assert "refused after 1 ms" in text
    assert "reading" in text


def test_nothing_at_all_is_drawn_too() -> None:
    assert drawn(ExplainReply())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_any_terminal_will_do(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(picture(placed_twice()))
    assert isinstance(console.file, io.StringIO)
    assert all(len(line) <= width for line in console.file.getvalue().splitlines())


DURATIONS = [(0.0, "0 ms"), (0.0012345, "1.23 ms"), (0.999, "999 ms"), (1.2345, "1.23 s")]


@pytest.mark.parametrize(("duration_s", "text"), DURATIONS)
def test_durations_are_for_people(duration_s: float, text: str) -> None:
    assert seconds(duration_s) == text
