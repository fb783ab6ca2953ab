"""A real instance over the stub engine, as a process.

python -m bench.stub_instance --spec-json JSON
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from bench.stub_engine import StepCost, load_stub
from deploy.instance import InstanceSpec, run_instance
from rpc.process import run_process


@dataclass(frozen=True, slots=True, kw_only=True)
class StubSpec:
    """An instance, and how long its steps take."""

    instance: InstanceSpec
    cost: StepCost = field(default_factory=StepCost)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"instance": self.instance.to_json(), "cost": asdict(self.cost)})

    @classmethod
    def from_json(cls, text: str) -> "StubSpec":
        """What `to_json` wrote."""
        table = json.loads(text)
        instance = InstanceSpec.from_json(table["instance"])
        return cls(instance=instance, cost=StepCost(**table["cost"]))


async def run_stub(spec: StubSpec, *, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """Serve until `stop`."""
    engine = spec.instance.config.engine
    await run_instance(
        spec.instance,
        stop=stop,
        ready=ready,
        load=lambda _: load_stub(spec.cost, engine.num_blocks, engine.block_size),
    )


if __name__ == "__main__":
    run_process("python -m bench.stub_instance", StubSpec.from_json, run_stub)
