"""Instances with a real model: the oracle's tokens; and an instance as a process."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from core.config import Config, EngineConfig, WorkerConfig
from core.errors import ConfigError, ModelError
from core.ids import InstanceId
from core.member import Role
from core.model_spec import ModelSpec
from core.parallel import ParallelLayout
from core.request import SamplingParams
from core.work import WorkRequest
from deploy.assembly import Compute
from deploy.fingerprint import config_digest, fingerprint
from deploy.instance import InstanceSpec, load_compute, member_of
from deploy.tiny_model import write_tiny_llama
from rpc.dial import dial
from rpc.pb.cluster_pb2 import StatusRequest
from rpc.pb.cluster_pb2_grpc import ClusterStub
from tests.deploy.instances import (
    CONFIG,
    Running,
    decode_request,
    events,
    instance,
    prefill_request,
    subscribed,
    work,
)
from tests.worker_host.fake_engine import FAKE_SPEC

TINY = replace(CONFIG, engine=EngineConfig(num_blocks=64, block_size=4))
START_TIMEOUT_S = 120.0


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that costs nothing."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def oracle(tiny_dir: Path) -> Callable[[tuple[int, ...], int], list[int]]:
    """Greedy output of Hugging Face `generate()`."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_dir)

    def generate(prompt: tuple[int, ...], num_tokens: int) -> list[int]:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        return [int(token_id) for token_id in out[0, len(prompt) :]]

    return generate


def spec_of(tiny_dir: Path, config: Config = TINY) -> InstanceSpec:
    """Of a prefill instance."""
    return InstanceSpec(
        instance_id=InstanceId("prefill-0"), role=Role.PREFILL, model_dir=tiny_dir, config=config
    )


def load(tiny_dir: Path) -> Compute:
    """A model of its own."""
    return load_compute(spec_of(tiny_dir))


async def answers(
    prefill: Running, decode: Running, requests: list[WorkRequest]
) -> list[list[int]]:
    """All at once, over both instances."""
    async with subscribed(decode) as router, asyncio.TaskGroup() as group:
        for request in requests:
            await decode.decode.Decode(decode_request(request, prefill))
            group.create_task(events(prefill.prefill.Prefill(prefill_request(request))))
        await router.until(lambda: all(router.heard(r.handoff_id).is_over for r in requests))
        return [router.heard(request.handoff_id).token_ids for request in requests]


def requests(compute: Compute, sampling: SamplingParams) -> list[WorkRequest]:
    """Prompts of many lengths, around block and chunk edges."""
    lengths = (1, 4, 7, 8, 9, 23, 32)
    return [
        replace(
            work(tuple(3 + (7 * n + i * i) % 400 for i in range(n)), handoff_id=f"length-{n}/0"),
            sampling=sampling,
            fingerprint=compute.fingerprint,
        )
        for n in lengths
    ]


async def test_greedy_output_equals_the_oracles(
    tiny_dir: Path, oracle: Callable[[tuple[int, ...], int], list[int]]
) -> None:
    compute = load(tiny_dir)
    asked = requests(compute, SamplingParams(temperature=0))
    async with (
        instance(Role.PREFILL, TINY, compute) as prefill,
        instance(Role.DECODE, TINY, load(tiny_dir)) as decode,
    ):
        told = await answers(prefill, decode, asked)
        await prefill.all_returned()
        await decode.all_returned()
    assert told == [oracle(r.prompt_token_ids, r.stop.max_tokens) for r in asked]


async def test_sampled_output_does_not_depend_on_who_computes_it(tiny_dir: Path) -> None:
    compute = load(tiny_dir)
    asked = requests(compute, SamplingParams(temperature=1.0, top_p=0.9, seed=7))
    whole = replace(TINY, worker=WorkerConfig(prefill_step_tokens=512))
    async with (
        instance(Role.PREFILL, TINY, compute) as prefill,
        instance(Role.DECODE, TINY, load(tiny_dir)) as decode,
    ):
        two = await answers(prefill, decode, asked)
    async with instance(Role.MIXED, whole, load(tiny_dir)) as mixed:
        one = [(await answers(mixed, mixed, [request]))[0] for request in asked]
        await mixed.all_returned()
    assert two == one


# --- what pairs instances ---------------------------------------------------------------------

SAME = fingerprint(FAKE_SPEC, "tokenizer", "config")
OTHERS = [
    (replace(FAKE_SPEC, weights_digest="other"), "tokenizer", "config"),
    (replace(FAKE_SPEC, dtype="bfloat16"), "tokenizer", "config"),
    (replace(FAKE_SPEC, weights="int8"), "tokenizer", "config"),
    (replace(FAKE_SPEC, num_kv_heads=2), "tokenizer", "config"),
    (FAKE_SPEC, "other", "config"),
    (FAKE_SPEC, "tokenizer", "other"),
]


@pytest.mark.parametrize(("model", "tokenizer", "config"), OTHERS)
def test_whatever_changes_the_kv_changes_the_fingerprint(
    model: ModelSpec, tokenizer: str, config: str
) -> None:
    assert fingerprint(model, tokenizer, config) != SAME


def test_a_models_name_is_not_in_the_fingerprint() -> None:
    assert fingerprint(replace(FAKE_SPEC, name="copy"), "tokenizer", "config") == SAME


NAMES = [
    # given   as told
    ("", "tiny"),
    ("chat", "chat"),
]


@pytest.mark.parametrize(("given", "told"), NAMES)
def test_a_model_is_called_as_given_or_as_its_folder(tiny_dir: Path, given: str, told: str) -> None:
    spec = replace(spec_of(tiny_dir), model_name=given)
    assert member_of(spec, load(tiny_dir), "127.0.0.1:1").model == told


def test_other_weights_may_follow_under_the_same_name(tiny_dir: Path, tmp_path: Path) -> None:
    other_dir = write_tiny_llama(tmp_path / "other", seed=1)
    members = [
        member_of(replace(spec_of(folder), model_name="chat"), load(folder), "127.0.0.1:1")
        for folder in (tiny_dir, other_dir)
    ]
    assert {member.model for member in members} == {"chat"}
    assert members[0].fingerprint != members[1].fingerprint


def test_who_wrote_a_config_does_not_matter(tmp_path: Path) -> None:
    digests = []
    for version, theta in (("5.1", 1e4), ("5.2", 1e4), ("5.1", 1e5)):
        config = {"transformers_version": version, "rope_theta": theta}
        (tmp_path / "config.json").write_text(json.dumps(config))
        digests.append(config_digest(tmp_path))
    assert digests[0] == digests[1] != digests[2]


# --- as a process -----------------------------------------------------------------------------


def test_a_spec_survives_json(tiny_dir: Path) -> None:
    spec = replace(
        spec_of(tiny_dir), registry_url="redis://127.0.0.1:1", port=4711, model_name="chat"
    )
    assert InstanceSpec.from_json(spec.to_json()) == spec


BAD_SPECS = [
    "",
    "[]",
    '{"instance_id": "a"}',
    '{"instance_id": "a", "role": "prefill", "model_dir": "m", "colour": "blue"}',
    '{"instance_id": "a", "role": "boss", "model_dir": "m"}',
    '{"instance_id": "a", "role": "prefill", "model_dir": "m", "model_name": 7}',
    '{"instance_id": "a", "role": "prefill", "model_dir": "m", "model_name": "a\\nb"}',
    json.dumps({"instance_id": "a", "role": "prefill", "model_dir": "m", "model_name": "m" * 257}),
    '{"instance_id": "a", "role": "prefill", "model_dir": "m", "config": {"engine": {"x": 1}}}',
    '{"instance_id": "a", "role": "prefill", "model_dir": "m",'
    ' "config": {"engine": {"num_blocks": 0}}}',
]


@pytest.mark.parametrize("text", BAD_SPECS)
def test_a_bad_spec_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        InstanceSpec.from_json(text)


async def test_a_process_serves_until_its_parent_lets_go(tiny_dir: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.instance", "--spec-json", spec_of(tiny_dir).to_json()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            address = json.loads(await process.stdout.readline())["address"]
            async with dial(address) as channel:
                reply = await ClusterStub(channel).Status(StatusRequest())
                assert reply.instances[0].integrity.pid == process.pid
                assert reply.instances[0].integrity.num_tasks == 0
            process.stdin.close()
            _, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()
            assert b"Traceback" not in errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_rounded_weights_need_a_single_rank(tiny_dir: Path) -> None:
    rounded = replace(TINY, engine=replace(TINY.engine, weights="int8"))
    spec = replace(spec_of(tiny_dir), config=rounded, layout=ParallelLayout(tp=2))
    with pytest.raises(ModelError, match="'int8' needs tp = 1 and pp = 1, not 2x1"):
        load_compute(spec)
