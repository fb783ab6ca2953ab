"""Who holds what: every layer and every head somewhere, as evenly as whole ones allow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.model_spec import ModelSpec
from core.parallel import ParallelLayout, RankPlace, layout_problems, shard_of, split


def spec_of(num_layers: int, num_query_heads: int, num_kv_heads: int) -> ModelSpec:
    return ModelSpec(
        name="model",
        architecture="LlamaForCausalLM",
        num_layers=num_layers,
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        hidden_size=64,
        vocab_size=100,
        max_context_tokens=100,
        eos_token_ids=(),
        dtype="float32",
        weights_digest="",
    )


@given(st.integers(0, 200), st.integers(1, 20))
def test_parts_are_all_and_nearly_equal(num: int, num_parts: int) -> None:
    parts = [split(num, num_parts, part) for part in range(num_parts)]
    assert [i for part in parts for i in part] == list(range(num))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.data())
def test_every_head_of_every_layer_is_somewhere(data: st.DataObject) -> None:
    num_kv, group = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    spec = spec_of(data.draw(st.integers(1, 12)), num_kv * group, num_kv)
    layout = ParallelLayout(tp=data.draw(st.integers(1, 8)), pp=data.draw(st.integers(1, 8)))
    if list(layout_problems(spec, layout)):
        return
    queries = []
    for rank in range(layout.num_workers):
        shard = shard_of(spec, RankPlace(layout=layout, rank=rank))
        assert shard.layers
        assert shard.query_heads
        # The local grouping is the model's: each local KV head is read by as many local queries.
        per_kv_head, rest = divmod(len(shard.query_heads), len(shard.kv_heads))
        assert rest == 0
        for i, query in enumerate(shard.query_heads):
            assert shard.kv_heads[i // per_kv_head] == query // group
        queries += [(layer, head) for layer in shard.layers for head in shard.query_heads]
    assert sorted(queries) == [
        (layer, head) for layer in range(spec.num_layers) for head in range(spec.num_query_heads)
    ]


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        (ParallelLayout(tp=0), "tp must be 1 to 64, got 0"),
        (ParallelLayout(pp=65), "pp must be 1 to 64, got 65"),
        (ParallelLayout(pp=4), "pp = 4: the model has 3 layers"),
        (ParallelLayout(tp=4), "tp = 4: more ranks than the model's 3 KV heads"),
    ],
    ids=str,
)
def test_refused(layout: ParallelLayout, named: str) -> None:
    spec = spec_of(3, 9, 3)
    assert named in " ".join(layout_problems(spec, layout))
    with pytest.raises(ValueError, match=named):
        shard_of(spec, RankPlace(layout=layout))


@pytest.mark.parametrize("text", ["", "2", "2x", "x2", "ax1", "2x1x1", "-1x1", "0x1", "1x65"])
def test_no_layout(text: str) -> None:
    with pytest.raises(ValueError, match=r"layout is TPxPP|must be 1 to 64"):
        ParallelLayout.parse(text)


def test_a_layout_reads_back() -> None:
    layout = ParallelLayout(tp=4, pp=2)
    assert ParallelLayout.parse(str(layout)) == layout


def test_ranks_of_a_stage_are_neighbours() -> None:
    place = RankPlace(layout=ParallelLayout(tp=2, pp=3), rank=3)
    assert (place.stage, place.tp_rank, place.stage_ranks) == (1, 1, range(2, 4))
    assert not place.is_first_stage
    assert not place.is_last_stage
