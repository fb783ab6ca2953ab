"""Each position is told in order, none twice in a subscription, and all in the end."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.ids import HandoffId
from core.request import Fence, FinishReason, TokenLogprobs
from core.timing import HandoffTiming
from core.work import KvLostReason
from decode_worker.outbox import MAX_ENDED, NOTHING, Ack, Facts, Failure, Letters, Outbox

ID = HandoffId("request/0")
FENCE = Fence(0, 1)


def opened(outbox: Outbox, position: int = 0) -> Letters:
    """One request."""
    return outbox.open(ID, FENCE, position)


def test_everything_unread_goes_into_one_output() -> None:
    outbox = Outbox()
    letters = opened(outbox)
    outbox.put(letters, (7,), Facts(committed=True))
    outbox.put(letters, (8,), replace(letters.facts, timing=HandoffTiming()))
    outbox.put(letters, (9,), replace(letters.facts, finish_reason=FinishReason.STOP))
    (output,) = outbox.take()
    assert (output.first_position, list(output.token_ids)) == (0, [7, 8, 9])
    assert output.facts == Facts(
        committed=True, timing=HandoffTiming(), finish_reason=FinishReason.STOP
    )
    assert outbox.take() == []


def logprobs_of(token_ids: Iterable[int]) -> list[TokenLogprobs]:
    """Of these tokens, and no others."""
    return [TokenLogprobs(-float(token_id)) for token_id in token_ids]


def test_logprobs_stay_with_their_tokens() -> None:
    outbox = Outbox()
    letters = opened(outbox)
    for token_id in range(4):
        outbox.put(letters, (token_id,), NOTHING, logprobs_of((token_id,)))
    outbox.take()
    outbox.put(letters, (4,), NOTHING, logprobs_of((4,)))
    (output,) = outbox.take()
    assert (output.first_position, output.logprobs) == (4, logprobs_of((4,)))
    outbox.ack(Ack(handoff_id=ID, next_position=1))
    outbox.subscribe([Ack(handoff_id=ID, next_position=2)])
    (output,) = outbox.take()
    assert (output.first_position, list(output.token_ids)) == (2, [2, 3, 4])
    assert output.logprobs == logprobs_of((2, 3, 4))


def test_logprobs_that_would_not_line_up_are_not_told() -> None:
    outbox = Outbox()
    letters = opened(outbox)
    outbox.put(letters, (7,), NOTHING)
    outbox.put(letters, (8,), NOTHING, logprobs_of((8,)))
    (output,) = outbox.take()
    assert (list(output.token_ids), output.logprobs) == ([7, 8], ())
    outbox.subscribe([Ack(handoff_id=ID, next_position=1)])
    (output,) = outbox.take()
    assert output.logprobs == logprobs_of((8,))


def test_a_fact_is_told_once_per_subscription() -> None:
    outbox = Outbox()
    letters = opened(outbox)
    outbox.put(letters, (7,), Facts(committed=True))
    outbox.take()
    outbox.put(letters, (8,), letters.facts)
    (output,) = outbox.take()
    assert output.facts == NOTHING
    outbox.subscribe([Ack(handoff_id=ID, next_position=1)])
    (output,) = outbox.take()
    assert (output.first_position, list(output.token_ids)) == (1, [8])
    assert output.facts == Facts(committed=True)


def test_nothing_follows_an_end() -> None:
    outbox = Outbox()
    letters = opened(outbox)
    outbox.put(letters, (), Facts(failure=Failure("UNAVAILABLE", "gone")))
    outbox.put(letters, (7,), NOTHING)
    (output,) = outbox.take()
    assert list(output.token_ids) == []
    assert output.facts.failure == Failure("UNAVAILABLE", "gone")


def test_a_retarget_forgets_the_loss() -> None:
    outbox = Outbox()
    letters = opened(outbox)
    outbox.put(letters, (), Facts(kv_lost=KvLostReason.PEER))
    outbox.take()
    outbox.retarget(letters, Fence(0, 2), 3)
    assert outbox.take() == []
    outbox.put(letters, (), Facts(kv_lost=KvLostReason.PEER))
    (output,) = outbox.take()
    assert (output.fence, output.first_position) == (Fence(0, 2), 3)
    assert output.facts.kv_lost is KvLostReason.PEER


def test_an_end_is_kept_until_its_arrival_is_acknowledged() -> None:
    outbox = Outbox()
    letters = opened(outbox)
    outbox.put(letters, (7,), Facts(finish_reason=FinishReason.LENGTH))
    assert not outbox.ack(Ack(handoff_id=ID, next_position=1))
    outbox.subscribe([Ack(handoff_id=ID, next_position=1)])
    (output,) = outbox.take()
    assert (output.first_position, list(output.token_ids)) == (1, [])
    assert output.facts.finish_reason is FinishReason.LENGTH
    assert outbox.ack(Ack(handoff_id=ID, next_position=1, done=True))
    assert len(outbox) == 0


def test_a_subscription_says_what_nobody_reads() -> None:
    outbox = Outbox()
    opened(outbox)
    other = HandoffId("request/1")
    outbox.open(other, FENCE, 0)
    assert outbox.subscribe([Ack(handoff_id=other, next_position=0)]) == [ID]


def test_ends_that_nobody_acknowledges_are_bounded() -> None:
    outbox = Outbox()
    for n in range(MAX_ENDED + 10):
        letters = outbox.open(HandoffId(f"request/{n}"), FENCE, 0)
        outbox.put(letters, (1,), Facts(finish_reason=FinishReason.STOP))
    assert len(outbox) == outbox.num_unacked == MAX_ENDED


@dataclass
class Read:
    """What the router has of one request."""

    tokens: list[int] = field(default_factory=list)
    is_over: bool = False


class OutboxMachine(RuleBasedStateMachine):
    """A router that loses streams at any moment still reads every token once and in order."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox()
        self.letters: dict[HandoffId, Letters] = {}
        self.sent: dict[HandoffId, list[int]] = {}
        self.read: dict[HandoffId, Read] = {}

    @rule(name=st.sampled_from("abc"))
    def open(self, name: str) -> None:
        handoff_id = HandoffId(name)
        if handoff_id not in self.letters:
            self.letters[handoff_id] = self.outbox.open(handoff_id, FENCE, 0)
            self.sent[handoff_id] = []
            self.read[handoff_id] = Read()

    @rule(name=st.sampled_from("abc"), num_tokens=st.integers(1, 3), ends=st.booleans())
    def put(self, name: str, num_tokens: int, ends: bool) -> None:
        letters = self.letters.get(HandoffId(name))
        if letters is None or letters.facts.is_end:
            return
        sent = self.sent[letters.handoff_id]
        new = list(range(len(sent), len(sent) + num_tokens))
        sent += new
        reason = FinishReason.STOP if ends else None
        facts = replace(letters.facts, committed=True, finish_reason=reason)
        self.outbox.put(letters, new, facts, logprobs_of(new))

    @rule()
    def receive(self) -> None:
        for output in self.outbox.take():
            read = self.read[output.handoff_id]
            assert output.first_position == len(read.tokens)
            assert output.token_ids or output.facts != NOTHING
            assert list(output.logprobs) == logprobs_of(output.token_ids)
            read.tokens += output.token_ids
            read.is_over = read.is_over or output.facts.is_end

    @rule()
    def lose_a_frame_and_subscribe_again(self) -> None:
        self.outbox.take()
        self.outbox.subscribe(self.acks())

    @rule()
    def acknowledge(self) -> None:
        for ack in self.acks():
            self.outbox.ack(ack)

    def acks(self) -> list[Ack]:
        return [
            Ack(handoff_id=handoff_id, next_position=len(read.tokens), done=read.is_over)
            for handoff_id, read in self.read.items()
        ]

    @invariant()
    def read_is_a_prefix_of_sent(self) -> None:
        for handoff_id, read in self.read.items():
            assert read.tokens == self.sent[handoff_id][: len(read.tokens)]

    @invariant()
    def unacked_adds_up(self) -> None:
        kept = [self.outbox.find(handoff_id) for handoff_id in self.letters]
        assert self.outbox.num_unacked == sum(len(k.token_ids) for k in kept if k is not None)

    def teardown(self) -> None:
        self.outbox.subscribe(self.acks())
        self.receive()
        for handoff_id, read in self.read.items():
            assert read.tokens == self.sent[handoff_id]
            assert read.is_over == self.letters[handoff_id].facts.is_end


OutboxMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestOutbox = OutboxMachine.TestCase
