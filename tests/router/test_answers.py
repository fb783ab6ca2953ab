"""What clients get when nothing fails."""

from core.request import FinishReason
from router.events import Accepted, Delta, Finished
from tests.router.conftest import OpenStage
from tests.router.fake_model import expected

PROMPT = (5, 6, 7)


async def test_tokens_come_once_and_in_order(stage: OpenStage) -> None:
    on = await stage("pd")
    events = [event async for event in on.client.generate(token_ids=PROMPT, max_tokens=20, seed=3)]
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Finished)
    deltas = [event for event in events if isinstance(event, Delta)]
    got: list[int] = []
    for delta in deltas:
        assert delta.position == len(got)
        got += delta.token_ids
    assert got == expected(PROMPT, 20, seed=3)
    assert events[-1].reason is FinishReason.LENGTH
    assert events[-1].num_output_tokens == 20
    assert "".join(delta.text for delta in deltas) == " ".join(f"w{i}" for i in got)


async def test_one_token_never_meets_decode(stage: OpenStage) -> None:
    on = await stage("pd")
    [answer] = await on.client.complete(token_ids=PROMPT, max_tokens=1, seed=3)
    assert list(answer.token_ids) == expected(PROMPT, 1, seed=3)
    assert on["d0"].decodes == []
    assert on["p0"].prefills[0].only_first_token
    timing = answer.finished.timing
    assert (timing.prefill_instance_id, timing.decode_instance_id) == ("p0", "")
