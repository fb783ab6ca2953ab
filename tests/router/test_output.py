"""What waits for a client: joined, bounded, timed; and acknowledgements."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.clock import ManualClock
from core.errors import SlowReader
from core.ids import HandoffId, RequestId
from core.request import FinishReason, Request, SamplingParams, StopParams, TokenLogprobs
from router.acks import MANY_TOKENS, AckBook
from router.answer import Answer
from router.answer_text import AnswerText
from router.delivery import Delivery
from router.events import Delta, Finished, RequestTiming
from router.output import BYTES_PER_LOGPROB, BYTES_PER_TOKEN, HARD_FACTOR, ClientBuffer
from router.record import ChoiceRecord
from router.timeline import Timeline
from tests.router.fake_model import VOCAB_SIZE
from text.tokenizer import Tokenizer

ID = HandoffId("r/0")


def buffer(clock: ManualClock | None = None, max_bytes: int = 200) -> ClientBuffer:
    return ClientBuffer(max_bytes=max_bytes, stall_s=5.0, clock=clock or ManualClock())


def ignore(num_tokens: int, now_s: float) -> None:
    """No timeline."""


def delta(position: int, num: int = 1, choice: int = 0) -> Delta:
    ids = tuple(range(position, position + num))
    return Delta(choice, position, ids, "".join(f"<{i}>" for i in ids))


def finished() -> Finished:
    return Finished(
        choice=0,
        reason=FinishReason.STOP,
        matched_stop="",
        num_output_tokens=3,
        timing=RequestTiming(),
    )


async def test_tokens_that_wait_leave_together() -> None:
    waiting = buffer()
    for position in range(3):
        waiting.put(0, delta(position), ignore)
    waiting.finish(0, 3, finished)
    events = await waiting.take()
    assert events == [Delta(0, 0, (0, 1, 2), "<0><1><2>"), finished()]


def told(*token_ids: int) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(-float(i), ((i, -0.5), (0, -2.0))) for i in token_ids)


async def test_their_log_probabilities_leave_with_them() -> None:
    waiting = buffer(max_bytes=1000)
    for position in range(3):
        waiting.put(0, replace(delta(position), logprobs=told(position)), ignore)
    assert await waiting.take() == [Delta(0, 0, (0, 1, 2), "<0><1><2>", told(0, 1, 2))]


async def test_log_probabilities_count_against_the_bound() -> None:
    size = len("<0>") + BYTES_PER_TOKEN + 3 * BYTES_PER_LOGPROB
    waiting = buffer(max_bytes=size)
    for position in range(HARD_FACTOR):
        waiting.put(0, replace(delta(position), logprobs=told(position)), ignore)
    assert waiting.error is None
    waiting.put(0, delta(HARD_FACTOR, 1), ignore)
    assert isinstance(waiting.error, SlowReader)
    await waiting.take()
    assert waiting._num_bytes == 0


@pytest.mark.parametrize(("stop", "num_tokens"), [("w3 w4", 4), ("never", 5)])
async def test_a_stop_string_cuts_tokens_and_log_probabilities_alike(
    model_dir: Path, stop: str, num_tokens: int
) -> None:
    request = Request(
        request_id=RequestId("r"),
        model="m",
        prompt_token_ids=(7,),
        sampling=SamplingParams(num_logprobs=2),
        stop=StopParams(max_tokens=9, stop_strings=(stop,)),
        deadline_s=10.0,
    )
    waiting = buffer(max_bytes=1000)
    record = ChoiceRecord(index=0, timeline=Timeline(arrived_at_s=0.0))
    answer = Answer(request, Tokenizer.load(model_dir), waiting, record)
    ids = (1, 2, 3, 4, 5)
    assert answer.deliver(0, ids, told(*ids)) is (stop != "never")
    [event] = await waiting.take()
    assert isinstance(event, Delta)
    assert (event.token_ids, event.logprobs) == (ids[:num_tokens], told(*ids[:num_tokens]))


async def test_choices_take_turns() -> None:
    waiting = buffer()
    waiting.put(0, delta(0), ignore)
    waiting.put(1, delta(0, choice=1), ignore)
    assert await waiting.take() == [delta(0)]
    waiting.put(0, delta(1), ignore)
    assert await waiting.take() == [delta(0, choice=1)]
    assert await waiting.take() == [delta(1)]


async def test_a_reader_that_stalls_is_ended() -> None:
    clock = ManualClock()
    waiting = buffer(clock)
    waiting.put(0, delta(0, 11), ignore)
    assert waiting.error is None
    clock.advance(4.9)
    waiting.put(0, delta(11), ignore)
    assert waiting.error is None
    clock.advance(0.2)
    waiting.put(0, delta(12), ignore)
    assert isinstance(waiting.error, SlowReader)
    assert waiting.over.is_set()


async def test_a_reader_that_reads_now_and_then_is_not() -> None:
    clock = ManualClock()
    waiting = buffer(clock)
    for turn in range(5):
        waiting.put(0, delta(turn * 11, 11), ignore)
        clock.advance(4.9)
        await waiting.take()
    assert waiting.error is None


async def test_the_hard_bound_needs_no_time() -> None:
    waiting = buffer(max_bytes=100)
    waiting.put(0, delta(0, 100 * HARD_FACTOR // 16 + 1), ignore)
    assert isinstance(waiting.error, SlowReader)


async def test_the_first_error_counts() -> None:
    waiting = buffer()
    waiting.fail(SlowReader("first"))
    waiting.fail(SlowReader("second"))
    assert str(waiting.error) == "first"


async def test_taking_waits_for_news() -> None:
    waiting = buffer()
    taker = asyncio.ensure_future(waiting.take())
    await asyncio.sleep(0)
    waiting.put(0, delta(0), ignore)
    assert await taker == [delta(0)]


def test_timeline_of_tokens_that_left_together() -> None:
    timeline = Timeline(arrived_at_s=1.0)
    timeline.left(2, 3.0)
    timeline.left(1, 5.0)
    timing = timeline.timing()
    assert (timing.ttft_s, timing.first_gap_s, timing.tpot_s, timing.e2e_s) == (2.0, 0.0, 1.0, 4.0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), max_size=40))
def test_delivery_is_once_and_in_order(pieces: list[tuple[int, int]]) -> None:
    truth = tuple(range(100, 110))
    delivery = Delivery(StopParams(max_tokens=10), ())
    got: list[int] = []
    got_logprobs: list[TokenLogprobs] = []
    for first, num in pieces:
        ids = truth[first : first + num]
        new_ids, new_logprobs = delivery.take(first, ids, None, told(*ids))
        got += new_ids
        got_logprobs += new_logprobs
        assert tuple(got) == truth[: len(got)] == delivery.token_ids
        assert tuple(got_logprobs) == told(*got)
    covered = {at for first, num in pieces for at in range(first, min(10, first + num))}
    prefix = next(i for i in range(11) if i not in covered)
    assert len(got) == prefix


def test_acks_are_cumulative_and_said_once() -> None:
    book = AckBook()
    book.open(ID)
    assert not book.any.is_set()
    for position in (1, 2, 1):
        book.note(ID, position, done=False)
    assert book.any.is_set()
    assert not book.many.is_set()
    [ack] = book.take()
    assert (ack.next_position, ack.done) == (2, False)
    assert book.take() == []
    assert not book.any.is_set()


def test_much_progress_does_not_wait() -> None:
    book = AckBook()
    book.open(ID)
    book.note(ID, MANY_TOKENS, done=False)
    assert book.many.is_set()


def test_a_new_subscription_names_what_is_read() -> None:
    book = AckBook()
    for name in ("a", "b", "c"):
        book.open(HandoffId(name))
    book.note(HandoffId("a"), 3, done=False)
    book.take()
    book.note(HandoffId("b"), 5, done=True)
    book.close(HandoffId("b"))
    book.close(HandoffId("c"))
    named = {ack.handoff_id: (ack.next_position, ack.done) for ack in book.take_all()}
    assert named == {"a": (3, False), "b": (5, True)}
    assert [ack.handoff_id for ack in book.take_all()] == ["a"]


@pytest.mark.parametrize("stop", [(), ("w3 w4",), ("never",)])
def test_text_does_not_depend_on_how_tokens_arrive(model_dir: Path, stop: tuple[str, ...]) -> None:
    tokenizer = Tokenizer.load(model_dir)
    ids = [i % VOCAB_SIZE for i in range(1, 9)]

    def text_of(size: int) -> tuple[str, str | None, int]:
        answer, text, matched, num = AnswerText(tokenizer, stop), "", None, 0
        for start in range(0, len(ids), size):
            piece = answer.push(ids[start : start + size])
            text, num = text + piece.text, num + piece.num_tokens
            if (matched := piece.matched_stop) is not None:
                return text, matched, num
        return text + answer.flush().text, matched, num

    assert len({text_of(size) for size in (1, 2, 3, 8)}) == 1
    assert text_of(1)[2] == (4 if stop == ("w3 w4",) else 8)
