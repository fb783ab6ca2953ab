"""`python -m deploy.inventory.record FILE`: what this host's NVML says, for a test elsewhere."""

import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.inventory.host import read_inventory
from deploy.inventory.nvml import load_nvml
from deploy.inventory.recording import Recorder

ABOUT = "recorded on {host}, driver {driver}"


def main(arguments: Sequence[str]) -> int:
    """Writes the file; 2 without one to write, 1 without pynvml."""
    nvml = load_nvml()
    if len(arguments) != 1 or nvml is None:
        sys.stderr.write(f"{__doc__}\n" if nvml else "pynvml is not installed\n")
        return 2 if nvml else 1
    recorder = Recorder(nvml)
    found = read_inventory(recorder)
    recorder.write(Path(arguments[0]), ABOUT.format(host=found.host, driver=found.driver))
    sys.stderr.write(f"{len(recorder.calls)} calls, {len(found.gpus)} GPUs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
