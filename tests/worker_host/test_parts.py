"""The small parts of a worker host."""

import asyncio

import pytest

from core.blocks import BlockState
from core.clock import ManualClock, MonotonicClock
from core.config import WorkerConfig
from core.errors import BatonError, Draining, Incompatible, InvalidRequest
from core.member import Role
from engine.block_allocator import BlockAllocator
from tests.deploy.instances import work
from tests.worker_host.fake_engine import FINGERPRINT
from worker_host.blocks import InstanceBlocks
from worker_host.callbacks import CallbackErrors
from worker_host.door import Door
from worker_host.holds import StepHolds
from worker_host.lag import SAMPLE_EVERY_S, LagMonitor
from worker_host.role import budget_of
from worker_host.watchdog import STEP_TIMEOUT_S, Watchdog

WORKER = WorkerConfig(prefill_step_tokens=256, mixed_step_tokens=64)
BUDGETS = [
    # role          running  tokens  share of 100 blocks
    (Role.PREFILL, 0, 256, 100),
    (Role.PREFILL, 9, 247, 100),
    (Role.DECODE, 0, 256, 50),
    (Role.DECODE, 1, 63, 50),
    (Role.MIXED, 0, 256, 50),
    (Role.MIXED, 9, 55, 50),
    (Role.MIXED, 64, 4, 50),
]


@pytest.mark.parametrize(("role", "num_decoding", "num_tokens", "num_blocks"), BUDGETS)
def test_a_role_is_a_budget(
    role: Role, num_decoding: int, num_tokens: int, num_blocks: int
) -> None:
    budget = budget_of(role, WORKER)
    assert budget.step_tokens(num_decoding) == num_tokens
    assert budget.max_prompt_blocks(100) == num_blocks


DOOR_CASES = [
    # id             fingerprint  tokens draining want
    ("fits", FINGERPRINT, 40, False, None),
    ("one too many", FINGERPRINT, 41, False, InvalidRequest),
    ("another model", "other", 1, False, Incompatible),
    ("draining", FINGERPRINT, 1, True, Draining),
]


@pytest.mark.parametrize(
    ("fingerprint", "num_tokens", "draining", "want"),
    [case[1:] for case in DOOR_CASES],
    ids=[case[0] for case in DOOR_CASES],
)
def test_door(
    fingerprint: str, num_tokens: int, draining: bool, want: type[BatonError] | None
) -> None:
    door = Door(FINGERPRINT, num_blocks=10, block_size=4)
    door.is_draining = draining
    request = work(fingerprint=fingerprint)
    if want is None:
        door.check(request, num_kv_tokens=num_tokens)
        return
    with pytest.raises(want) as refused:
        door.check(request, num_kv_tokens=num_tokens)
    if want is InvalidRequest:
        assert "41 tokens need 11 KV blocks of 4, this instance has 10" in str(refused.value)


def test_listeners_hear_of_freed_blocks_only() -> None:
    blocks = InstanceBlocks(BlockAllocator(4, 4))
    heard: list[int] = []
    blocks.on_freed(lambda: heard.append(blocks.num_free))
    ids = blocks.allocate(2, BlockState.OWNED)
    pin = blocks.pin(ids[:1])
    blocks.release(ids, BlockState.OWNED)
    blocks.unpin(pin)
    assert heard == [3, 4]


def test_holds_outlast_the_running_step_only() -> None:
    blocks = InstanceBlocks(BlockAllocator(2, 4))
    holds = StepHolds(blocks)
    ids = blocks.allocate(2, BlockState.OWNED)
    pins = [holds.hold(ids[:1]), holds.hold(ids[1:])]
    blocks.release(ids, BlockState.OWNED)
    holds.let_go(pins[:1])
    assert blocks.num_free == 1
    holds.step_begins()
    holds.let_go(pins[1:])
    assert blocks.num_free == 1
    holds.step_returned()
    assert blocks.num_free == 2


async def test_the_watchdog_reports_a_step_that_hangs_and_its_return() -> None:
    clock = ManualClock()
    running_since_s: float | None = 0.0
    reports: list[bool] = []

    async def report(is_well: bool) -> None:
        reports.append(is_well)

    watchdog = Watchdog(lambda: running_since_s, report, clock)
    clock.advance(STEP_TIMEOUT_S)
    await watchdog.look()
    assert reports == []
    clock.advance(0.1)
    await watchdog.look()
    await watchdog.look()
    running_since_s = None
    await watchdog.look()
    assert reports == [False, True]


async def test_lag_is_sampled_only_while_steps_run() -> None:
    loop = asyncio.get_running_loop()
    lag = LagMonitor(MonotonicClock())
    lag.step_begins()
    # Holds the loop as a bad step would, past the first sample's moment.
    held_until_s = loop.time() + 5 * SAMPLE_EVERY_S
    while loop.time() < held_until_s:
        pass
    await asyncio.sleep(2 * SAMPLE_EVERY_S)
    lag.step_returned()
    assert lag.take_p99_s() >= 3 * SAMPLE_EVERY_S
    await asyncio.sleep(4 * SAMPLE_EVERY_S)
    lag.take_p99_s()
    await asyncio.sleep(2 * SAMPLE_EVERY_S)
    assert lag.take_p99_s() == 0.0


async def test_a_failed_callback_ends_the_loop_that_watches(
    caplog: pytest.LogCaptureFixture,
) -> None:
    errors = CallbackErrors()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(errors.handle)

    def fail() -> None:
        raise ArithmeticError("broken")

    loop.call_soon(fail)
    with pytest.raises(ArithmeticError, match="broken"):
        async with asyncio.timeout(10.0):
            await errors.run()
    assert "broken" in caplog.text
