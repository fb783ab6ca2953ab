"""What a rank process is told when it starts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from core.parallel import ParallelLayout, RankPlace

DEVICE = "cpu"
"""Of every rank."""
RANK_TIMEOUT_S = 15.0
"""How long a rank waits for another within a step. The longest step seen on two busy cores took
2 s; the watchdog would call the instance hanging after 20 s, and this tells the reason first."""


class RankFiles(NamedTuple):
    """Descriptors of the memory that a rank maps; its process inherits them."""

    kv: int
    sums: int
    """One file for all ranks of a stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """Everything one rank process is told; on its command line."""

    model_dir: Path
    dtype: str
    layout: ParallelLayout
    rank: int
    num_blocks: int
    """KV blocks of the instance, those for warm-up included."""
    block_size: int
    num_threads: int
    timeout_s: float
    store_port: int

    @property
    def place(self) -> RankPlace:
        """Its place in the instance."""
        return RankPlace(layout=self.layout, rank=self.rank)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self) | {"model_dir": str(self.model_dir)})

    @classmethod
    def from_json(cls, text: str) -> "RankSpec":
        """What `to_json` wrote; anything else is a bug of ours."""
        table = json.loads(text)
        layout = ParallelLayout(**table.pop("layout"))
        return cls(**(table | {"model_dir": Path(table["model_dir"]), "layout": layout}))
