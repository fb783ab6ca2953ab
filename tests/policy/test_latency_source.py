"""One suite for every latency source: what the search and the simulator may rely on."""

import numpy as np
import pytest

from core.errors import NoProfile
from core.parallel import ParallelLayout
from policy.distserve import MODELS as DISTSERVE_MODELS
from policy.distserve import PROFILES, DistServe
from policy.hardware import gpu
from policy.latency_source import Extent, LatencySource, Reach, extrapolations
from policy.measured import Measured
from policy.model_files import preset
from policy.roofline import Roofline
from policy.splitwise import FORMS, HARDWARE, Splitwise
from policy.splitwise import MODELS as SPLITWISE_MODELS
from policy.step_times import NEVER, decode_ps, max_batch, prefill_s
from tests.core.profiles import profile

SOURCES: list[LatencySource] = [
    *(DistServe(model=model, engine=engine) for model in DISTSERVE_MODELS for engine in PROFILES),
    *(
        Splitwise(model=model, hardware=hardware, form=form)
        for model in SPLITWISE_MODELS
        for hardware in HARDWARE
        for form in FORMS
    ),
    Measured(profile=profile(), shape=preset("smollm2-135m"), num_blocks=100),
    Roofline(shape=preset("mixtral-8x7b"), gpu=gpu("h100-80g-sxm")),
]
by_name = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


@by_name
def test_it_answers_for_every_layout_that_it_names(source: LatencySource) -> None:
    layouts = source.layouts()
    assert layouts
    assert len(set(layouts)) == len(layouts)
    for layout in layouts:
        assert source.capacity_tokens(layout) > 0
        assert isinstance(source.reach(layout), Reach)
        assert source.times(layout).num_stages == layout.pp
    assert source.num_layers >= 1
    assert source.kv_bytes_per_token > 0
    assert source.max_context_tokens > 1
    assert all(note and not note.endswith(".") for note in source.notes)


@by_name
def test_its_tables_are_in_order(source: LatencySource) -> None:
    for layout in source.layouts():
        times = source.times(layout)
        assert (np.diff(times.prefill_tokens) > 0).all()
        assert (times.prefill_s >= 0).all()
        rows = times.decode_starts[1:]
        assert (rows[:, 0] == 0).all()
        assert (np.diff(rows, axis=1)[rows[:, 1:] < NEVER] > 0).all()
        assert (times.decode_slope_ps >= 0).all()
        assert times.decode_base_ps.dtype == times.decode_slope_ps.dtype == np.int64
        assert max_batch(times) >= 256
        assert prefill_s(times, 1, 1) > 0
        assert decode_ps(times, 1, 1) > 0
        assert decode_ps(times, max_batch(times), 10**7) > 0


@by_name
def test_it_says_what_it_does_not_know(source: LatencySource) -> None:
    impossible = ParallelLayout(tp=9)
    for ask in (source.times, source.capacity_tokens, source.reach):
        with pytest.raises(NoProfile) as caught:
            ask(impossible)
        assert caught.value.available
        assert caught.value.remedy in str(caught.value)


def test_no_limit_is_never_exceeded() -> None:
    assert list(extrapolations(Reach(), Extent(prompt_tokens=10**9, batch=10**6))) == []


def test_each_quantity_has_its_sentence() -> None:
    reach = Reach(prompt_tokens=1, step_tokens=1, batch=1, context_tokens=1)
    beyond = Extent(prompt_tokens=2000, step_tokens=2, batch=2, context_tokens=2)
    sentences = list(extrapolations(reach, beyond))
    assert len(sentences) == 4
    assert sentences[0] == "extrapolated: prompts of up to 2,000 tokens, measured to 1"
