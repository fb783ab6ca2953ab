"""What a chat moves from turn to turn, and what KV of 8 bits on the wire does to answers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import handoff_spec as spec
from bench.asking import TIMEOUT_S, random_prompt
from bench.processes import running
from bench.report import Bar, Figure, figure
from core.config import Config, EngineConfig, HandoffConfig
from core.member import Role
from router.client import AsyncClient
from router.events import Delta, Finished, RequestTiming

PAIR = (Role.PREFILL, Role.DECODE)


@dataclass(frozen=True, slots=True)
class Answer:
    """All tokens of one answer."""

    token_ids: tuple[int, ...]
    timing: RequestTiming


async def chat(model_dir: Path, quick: bool) -> tuple[list[Figure], list[Bar]]:
    """Every turn's prompt is all that was said before, and new words; `quick` changes nothing."""
    rng, said = random.Random(spec.SEED), tuple[int, ...]()
    figures, bars = list[Figure](), list[Bar]()
    async with running(model_dir, PAIR, Config()) as cluster:
        # What fetching and computing cost is known to an instance that has worked.
        for _ in range(spec.WARMUPS):
            await _answer(cluster.client, random_prompt(rng, spec.FIRST_TURN_TOKENS), 1 + 1)
        block_size = EngineConfig().block_size
        for turn in range(1, spec.NUM_TURNS + 1):
            num_new = spec.FIRST_TURN_TOKENS if turn == 1 else spec.TURN_TOKENS
            prompt = said + random_prompt(rng, num_new)
            answer = await _answer(cluster.client, prompt, spec.TURN_ANSWER_TOKENS)
            figures += _turn(turn, len(prompt), answer.timing)
            moved = figures[-1]
            bound = num_new + block_size
            bars.append(Bar(name=moved.name, value=moved.median, bound=bound, unit="tokens"))
            said = prompt + answer.token_ids
    return figures, bars


def _turn(turn: int, num_prompt_tokens: int, timing: RequestTiming) -> list[Figure]:
    """The last one is what was moved to decode."""
    prefill, handoff = timing.prefill, timing.handoff
    num_known = prefill.num_hit_tokens + prefill.num_fetched_tokens
    values = [
        ("prompt", num_prompt_tokens, "tokens"),
        ("computed", num_prompt_tokens - num_known, "tokens"),
        ("cached on prefill", prefill.num_hit_tokens, "tokens"),
        ("fetched from decode to prefill", prefill.num_fetched_tokens, "tokens"),
        ("cached on decode", handoff.num_reused_tokens, "tokens"),
        ("bytes from prefill to decode", handoff.num_kv_bytes, "B"),
        (
            "moved from prefill to decode",
            handoff.num_kv_tokens - handoff.num_reused_tokens,
            "tokens",
        ),
    ]
    return [figure(f"turn {turn}: {name}", [value], unit) for name, value, unit in values]


async def eight_bits(model_dir: Path, quick: bool) -> tuple[list[Figure], list[Bar]]:
    """The same prompts with KV moved as it is stored and as int8; no bar: it is not exact."""
    rng = random.Random(spec.SEED)
    num_prompts = spec.QUICK_INT8_PROMPTS if quick else spec.INT8_PROMPTS
    prompts = [random_prompt(rng, spec.INT8_PROMPT_TOKENS) for _ in range(num_prompts)]
    stored, int8 = [await _answers(model_dir, prompts, wire) for wire in ("stored", "int8")]
    pairs = list(zip(stored, int8, strict=True))
    equal = [_share_equal(a.token_ids, b.token_ids) for a, b in pairs]
    first = [_first_difference(a.token_ids, b.token_ids) for a, b in pairs]
    ratios = [b.timing.handoff.num_kv_bytes / a.timing.handoff.num_kv_bytes for a, b in pairs]
    return [
        figure("int8: tokens as with stored", equal, "share"),
        figure(
            "int8: answers as with stored", [sum(s == 1.0 for s in equal) / len(equal)], "share"
        ),
        figure("int8: all tokens as with stored", [sum(equal) / len(equal)], "share"),
        figure(f"int8: first differing token, {spec.INT8_ANSWER_TOKENS} if none", first, ""),
        figure("int8: bytes moved, of stored", ratios, "share"),
    ], []


async def _answers(model_dir: Path, prompts: Sequence[Sequence[int]], wire: str) -> list[Answer]:
    config = Config(
        engine=EngineConfig(prefix_cache=False),
        handoff=HandoffConfig(wire_format=wire),
    )
    async with running(model_dir, PAIR, config) as cluster:
        return [await _answer(cluster.client, p, spec.INT8_ANSWER_TOKENS) for p in prompts]


async def _answer(client: AsyncClient, prompt: Sequence[int], num_tokens: int) -> Answer:
    token_ids = list[int]()
    stream = client.generate(
        token_ids=tuple(prompt),
        max_tokens=num_tokens,
        temperature=0.0,
        ignore_eos=True,
        timeout_s=TIMEOUT_S,
    )
    async for event in stream:
        if isinstance(event, Delta):
            token_ids += event.token_ids
        elif isinstance(event, Finished):
            timing = event.timing
    return Answer(tuple(token_ids), timing)


def _share_equal(a: Sequence[int], b: Sequence[int]) -> float:
    return sum(x == y for x, y in zip(a, b, strict=True)) / len(a)


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
