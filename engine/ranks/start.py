"""Starts the ranks of one instance: shared memory, processes, their parts of the model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from core.clock import Clock
from core.config import EngineConfig
from core.errors import ModelError
from core.model_spec import ModelSpec
from core.parallel import ParallelLayout, layout_problems
from engine.architecture import read_config
from engine.grammars import GrammarStates
from engine.model import check_dtype, model_spec
from engine.ranks.crew import Crew
from engine.ranks.group import open_store
from engine.ranks.leader import BROKEN, RankedForward
from engine.ranks.part import kv_bytes_of, kv_cache_of, load_stage
from engine.ranks.shared_kv import SpreadKv, shared_file
from engine.ranks.shared_sum import sums_bytes
from engine.ranks.spec import DEVICE, RANK_TIMEOUT_S, RankFiles, RankSpec
from engine.runner import Runner, num_scratch_blocks

START_TIMEOUT_S = 600.0
"""How long a rank may take to import, and again to load: a cold disk reads 10 GB in a minute or
more. Only a process that hangs gets there; one that fails is noticed at once."""

RankedRunner = Runner[SpreadKv]
"""With the KV spread over the ranks of this host."""


@contextmanager
def ranked_runner(
    model_dir: Path,
    *,
    engine: EngineConfig,
    layout: ParallelLayout,
    on_lost: Callable[[str], None],
    clock: Clock | None = None,
    grammars: GrammarStates | None = None,
) -> Iterator[RankedRunner]:
    """A runner over all ranks of an instance; they end with the context. See `start_ranks`."""
    forward = start_ranks(model_dir, engine=engine, layout=layout, on_lost=on_lost)
    try:
        yield Runner(forward, num_threads=engine.num_threads, clock=clock, grammars=grammars)
    finally:
        forward.close()


def start_ranks(
    model_dir: Path,
    *,
    engine: EngineConfig,
    layout: ParallelLayout,
    on_lost: Callable[[str], None],
    timeout_s: float = RANK_TIMEOUT_S,
) -> RankedForward:
    """Start and load all ranks, the leader's part in this process; takes seconds to minutes.

    `on_lost(reason)` is called once, in any thread, when a rank is lost: the instance has to end.
    `timeout_s` is how long ranks wait for each other within a step.

    Raises:
        ModelError: the model cannot be loaded, or not be split so.
        RankLost: a rank died or hangs while it starts.
    """
    model = _checked(model_dir, engine, layout)
    with ExitStack() as undo, ExitStack() as files:
        crew = Crew(timeout_s, on_lost)
        undo.callback(crew.close)
        store = open_store(layout.num_workers, timeout_s)
        specs = _rank_specs(model_dir, engine, layout, store.port, timeout_s)
        memory = _files(specs, model, files)
        try:
            crew.start(specs[1:], memory[1:])
            # Imported: from here all ranks are equally far, and patience may be short.
            _check_answers(crew)
            stage = load_stage(specs[0], store, memory[0], crew.has_ended)
            _check_answers(crew)
            crew.serve()
        except BROKEN as error:
            raise crew.explain(error) from error
        others = zip(specs[1:], memory[1:], strict=True)
        parts = [stage.kv_cache, *(kv_cache_of(spec, model, fds.kv) for spec, fds in others)]
        undo.pop_all()
    return RankedForward(
        spec=stage.spec,
        layout=layout,
        stage=stage,
        crew=crew,
        kv_cache=SpreadKv(model, parts),
        scratch_blocks=range(engine.num_blocks, specs[0].num_blocks),
    )


def _checked(model_dir: Path, engine: EngineConfig, layout: ParallelLayout) -> ModelSpec:
    """The model's shape, its digest left out. Raises ModelError before anything is started."""
    if engine.device != DEVICE:
        raise ModelError(
            f"{model_dir}: tp = {layout.tp}, pp = {layout.pp} on {engine.device}: several ranks "
            "are only offered on the CPU; on CUDA their KV could not be handed over"
        )
    check_dtype(engine.dtype)
    spec = model_spec(model_dir, read_config(model_dir), engine.dtype, digest="")
    if problems := list(layout_problems(spec, layout)):
        raise ModelError(f"{model_dir}: {'; '.join(problems)}")
    return spec


def _rank_specs(
    model_dir: Path, engine: EngineConfig, layout: ParallelLayout, port: int, timeout_s: float
) -> list[RankSpec]:
    """Of every rank, the leader included."""
    return [
        RankSpec(
            model_dir=model_dir.resolve(),
            dtype=engine.dtype,
            layout=layout,
            rank=rank,
            num_blocks=engine.num_blocks + num_scratch_blocks(engine.block_size),
            block_size=engine.block_size,
            num_threads=engine.num_threads,
            timeout_s=timeout_s,
            store_port=port,
        )
        for rank in range(layout.num_workers)
    ]


def _files(specs: Sequence[RankSpec], model: ModelSpec, opened: ExitStack) -> list[RankFiles]:
    """Of every rank; closed with `opened`."""
    layout = specs[0].layout
    sums = [opened.enter_context(shared_file(sums_bytes(layout.tp))) for _stage in range(layout.pp)]
    kv = [opened.enter_context(shared_file(kv_bytes_of(spec, model))) for spec in specs]
    return [RankFiles(kv[spec.rank], sums[spec.place.stage]) for spec in specs]


def _check_answers(crew: Crew) -> None:
    """Raises ModelError with what the ranks that could not start say."""
    answers = crew.answers(START_TIMEOUT_S)
    if errors := [answer.error for answer in answers if answer.error is not None]:
        raise ModelError("; ".join(errors))
