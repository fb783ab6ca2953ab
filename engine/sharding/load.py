"""Loads one rank's part of a checkpoint; of the rest no tensor is read into memory of its own."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from core.errors import ModelError
from core.model_spec import ModelSpec
from core.parallel import ParallelLayout, RankPlace, Shard, layout_problems, shard_of
from engine import attention
from engine.architecture import model_class, one_line, read_config
from engine.checkpoint import check_checkpoint, check_loading, quiet_transformers
from engine.kv_cache import TORCH_DTYPES
from engine.model import check_dtype, make_fast, model_spec, register_attention, weights_digest
from engine.sharding.apply import apply_cuts, cut_rest, resize
from engine.sharding.cuts import Cuts, Planner
from engine.sharding.layers import AllReduce
from engine.sharding.plans import Outline, embedding_name, head_name, outline_of
from engine.sharding.sources import Source, Sources
from engine.sharding.stage import StageModule, check_carries, drop_other_stages, finish_stage
from engine.weight_files import weight_files


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedShard:
    """One rank's part of a model, ready to run on one device."""

    spec: ModelSpec
    """Of the whole model."""
    place: RankPlace
    shard: Shard
    module: StageModule
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blueprint:
    """What is decided before a weight is read."""

    spec: ModelSpec
    place: RankPlace
    cuts: Cuts
    outline: Outline | None
    """None for a single stage."""
    shapes: dict[str, torch.Size]
    """Of the whole model's parameters."""
    ends: tuple[str, str]
    """Embedding and head."""
    sources: Sources


def load_shard(
    model_dir: Path,
    *,
    dtype: str,
    device: str,
    place: RankPlace,
    all_reduce: AllReduce,
    fast: bool = True,
) -> LoadedShard:
    """Load the part of `place` from a Hugging Face checkpoint directory.

    Not `fast`, its parts stay as transformers has them, cut.

    `all_reduce` sums over the ranks of the stage; it is kept, and never called where tp is 1. The
    leader reads every byte of the files once for the digest, through a map that leaves nothing
    behind; the others' spec is without one.

    Raises:
        ModelError: the checkpoint cannot be used, or not be split so; says which and why.
    """
    check_dtype(dtype)
    check_checkpoint(model_dir)
    config = read_config(model_dir)
    register_attention()
    blueprint = _blueprint(model_dir, config, dtype, place)
    files = weight_files(model_dir)
    spec = blueprint.spec
    if place.rank == 0:
        spec = replace(spec, weights_digest=weights_digest(files.paths))
    with ExitStack() as opened:
        found = blueprint.sources.read(files.paths, opened)
        model = _load(model_dir, config, blueprint, found)
    cut_rest(model, blueprint.cuts, blueprint.shapes)
    if blueprint.outline is not None:
        finish_stage(model, blueprint.outline, blueprint.ends, place)
    if place.layout.tp > 1:
        apply_cuts(model, blueprint.cuts, spec, place, all_reduce)
    model.to(device)
    if fast:
        make_fast(model, device)
    module = StageModule(model, place).eval().requires_grad_(False)
    return LoadedShard(
        spec=spec, place=place, shard=shard_of(spec, place), module=module, device=device
    )


def check_layout(model_dir: Path, layout: ParallelLayout) -> None:
    """Raise ModelError when the checkpoint cannot be split so; no weight is read."""
    register_attention()
    config = read_config(model_dir)
    for rank in {0, layout.num_workers - 1}:
        place = RankPlace(layout=layout, rank=rank)
        with quiet_transformers():
            _blueprint(model_dir, config, "float32", place)


def _blueprint(model_dir: Path, config: Any, dtype: str, place: RankPlace) -> _Blueprint:  # noqa: ANN401
    spec = model_spec(model_dir, config, dtype, digest="")
    if problems := list(layout_problems(spec, place.layout)):
        raise ModelError(f"{model_dir}: {'; '.join(problems)}")
    with quiet_transformers(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, attn_implementation=attention.NAME, dtype=torch.float32
        )
    try:
        cuts = Planner(model, spec, place).plan() if place.layout.tp > 1 else Cuts()
        outline = outline_of(model) if place.layout.pp > 1 else None
        shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
        blueprint = _Blueprint(
            spec=spec,
            place=place,
            cuts=cuts,
            outline=outline,
            shapes=shapes,
            ends=(embedding_name(model), head_name(model)),
            sources=Sources(shapes, cuts, model.base_model_prefix),
        )
        if outline is not None:
            check_carries(model, outline, spec)
    except ModelError as error:
        raise ModelError(f"{model_dir}: {error}") from None
    return blueprint


def _load(
    model_dir: Path,
    config: Any,  # noqa: ANN401
    blueprint: _Blueprint,
    found: dict[str, Source],
) -> Any:  # noqa: ANN401
    """transformers' own loading, with all its renaming and fusing, into a model of our shapes."""
    whole = model_class(config)
    # Not `found` itself: a class lives until the next garbage collection, and with it its maps.
    targets = {source.target for source in found.values()}

    def cut_down(model: Any, given: object) -> None:  # noqa: ANN401
        whole.__init__(model, given)
        resize(model, targets, blueprint.cuts)
        if blueprint.outline is not None:
            drop_other_stages(model, blueprint.outline, blueprint.spec, blueprint.place)

    # transformers builds the model itself, without weights, and then loads what the model has:
    # between the two there is only its constructor.
    part: Any = type(
        whole.__name__, (whole,), {"__init__": cut_down, "__module__": whole.__module__}
    )
    try:
        with quiet_transformers():
            model, loading = part.from_pretrained(
                None,
                config=config,
                state_dict=found,
                dtype=TORCH_DTYPES[blueprint.spec.dtype],
                attn_implementation=attention.NAME,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # whatever it is, the checkpoint cannot be served
        raise ModelError(f"{model_dir}: cannot be loaded: {one_line(error)}") from error
    check_loading(model_dir, model, loading)
    return model
