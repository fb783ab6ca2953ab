"""The memory model: figures of the papers, 76 measured capacities, and laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.parallel import ParallelLayout, layout_problems
from policy.distserve import CAPACITY_MODELS, capacities
from policy.memory import (
    USABLE_SHARE,
    capacity_tokens,
    stages,
    transfer_s,
)
from policy.model_files import preset, presets

GIB = 1024**3
A100_BYTES = 80 * GIB
DISTSERVE_SHARE = 0.929
"""Of memory that DistServe's engine fills, over its 76 published capacities: 0.920 to 0.938."""


def test_kv_of_512_tokens_of_opt_66b() -> None:
    assert 512 * preset("opt-66b").kv_bytes_per_token / GIB == 1.125


def test_kv_transfer_of_splitwise() -> None:
    per_token = preset("bloom-176b").kv_bytes_per_token
    assert transfer_s(4096, per_token, 200 * GIB) == 0.0765625
    assert transfer_s(2048, per_token, 200 * GIB) == 0.03828125


@pytest.mark.parametrize("model", CAPACITY_MODELS)
def test_capacities_that_distserve_measured(model: str) -> None:
    """With one share for all of them, within 1.2 % of a GPU's memory."""
    shape, worst = preset(model), 0.0
    for layout, published in capacities(model).items():
        got = capacity_tokens(shape, layout, A100_BYTES, usable_share=DISTSERVE_SHARE)
        per_token = max(each.kv_bytes_per_token for each in stages(shape, layout))
        off = (got - published) * per_token / A100_BYTES
        print(f"{model} {layout}: {got:,}, published {published:,}, {off:+.2%} of memory")
        worst = max(worst, abs(off))
    assert worst < 0.012


FITS = [
    # model, layout, does it fit into GPUs of 80 GiB
    ("opt-13b", ParallelLayout(), True),
    ("opt-66b", ParallelLayout(), False),
    ("opt-66b", ParallelLayout(tp=2), True),
    ("opt-175b", ParallelLayout(tp=4), False),
    ("opt-175b", ParallelLayout(tp=3, pp=3), True),
    ("llama-3.1-70b", ParallelLayout(tp=1, pp=2), True),
    ("deepseek-v3", ParallelLayout(tp=8), False),
    ("deepseek-v3", ParallelLayout(tp=8, pp=2), True),
]


@pytest.mark.parametrize(("model", "layout", "fits"), FITS)
def test_what_fits(model: str, layout: ParallelLayout, fits: bool) -> None:
    assert (capacity_tokens(preset(model), layout, A100_BYTES) > 0) is fits


def test_more_ranks_than_kv_heads_hold_the_same_heads() -> None:
    shape = preset("llama-3.1-70b")  # 8 KV heads
    per_token = [stages(shape, ParallelLayout(tp=tp))[0].kv_bytes_per_token for tp in (4, 8, 16)]
    assert per_token == [shape.kv_bytes_per_token / 4, *[shape.kv_bytes_per_token / 8] * 2]


def test_no_rank_has_less_of_a_latent_vector() -> None:
    shape = preset("deepseek-v3")
    for tp in (1, 2, 8):
        assert (
            stages(shape, ParallelLayout(tp=tp))[0].kv_bytes_per_token == shape.kv_bytes_per_token
        )


IMPOSSIBLE = [
    (
        "qwen3-30b-a3b",
        ParallelLayout(tp=6),
        "tp = 6: more ranks than the model's 4 KV heads works only where it is a multiple of them "
        "and divides the 32 query heads",
    ),
    ("opt-13b", ParallelLayout(pp=41), "pp = 41: the model has 40 layers"),
]


@pytest.mark.parametrize(("model", "layout", "says"), IMPOSSIBLE)
def test_what_cannot_be_split_is_named(model: str, layout: ParallelLayout, says: str) -> None:
    assert list(layout_problems(preset(model), layout)) == [says]


@pytest.mark.parametrize("model", presets())
@pytest.mark.parametrize("layout", [ParallelLayout(), ParallelLayout(tp=2, pp=2)], ids=str)
def test_ranks_hold_all_weights_and_all_kv(model: str, layout: ParallelLayout) -> None:
    shape = preset(model)
    held = stages(shape, layout)
    weight_bytes = layout.tp * sum(each.weight_bytes for each in held)
    # Replicated: norms, routers, the token table of tied models with stages.
    assert shape.weight_bytes <= weight_bytes * (1 + 1e-12)
    assert weight_bytes < 1.35 * shape.weight_bytes
    kv_bytes = layout.tp * sum(each.kv_bytes_per_token for each in held)
    assert kv_bytes >= shape.kv_bytes_per_token * (1 - 1e-12)


@given(
    model=st.sampled_from(presets()),
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.integers(1, 8),
    gib=st.integers(1, 300),
    step_tokens=st.integers(1, 16_384),
)
def test_laws(model: str, tp: int, pp: int, gib: int, step_tokens: int) -> None:
    shape, layout = preset(model), ParallelLayout(tp=tp, pp=pp)
    if list(layout_problems(shape, layout)):
        return
    room = capacity_tokens(shape, layout, gib * GIB, step_tokens=step_tokens)
    assert room >= 0
    assert room <= capacity_tokens(shape, layout, (gib + 1) * GIB, step_tokens=step_tokens)
    assert room >= capacity_tokens(shape, layout, gib * GIB, step_tokens=step_tokens + 1)
    for each in stages(shape, layout, step_tokens):
        used = each.weight_bytes + each.activation_bytes + room * each.kv_bytes_per_token
        assert room == 0 or used <= gib * GIB * USABLE_SHARE
