"""Copies between the paged cache of a device and payloads in this process's memory."""

import numpy as np
import torch

from engine.copies import Bytes, Runs, token_bytes


class DeviceCopier:
    """torch copies on a stream of their own, so that they overlap the compute stream.

    The caller names only slots that a finished step or layer wrote: no event is waited for here.
    """

    def __init__(self, data: torch.Tensor) -> None:
        """`data` is [layer, k/v, slot, head, dim]."""
        self._bytes = token_bytes(data)
        self._stream = (
            torch.cuda.Stream(data.device)  # type: ignore[no-untyped-call]
            if data.is_cuda
            else None
        )

    def read(self, layers: slice, runs: Runs, out: Bytes) -> None:
        """Fill `out`; through pinned memory, which the device fills several times faster."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            picked = self._bytes[layers].index_select(2, self._slots(runs))
            staged = torch.empty(picked.shape, dtype=torch.uint8, pin_memory=picked.is_cuda)
            staged.copy_(picked, non_blocking=True)
            self._synchronize()
        np.copyto(out, staged.numpy().reshape(out.shape))

    def write(self, layers: slice, runs: Runs, payload: Bytes) -> None:
        """Fill the slots; on the device when this returns."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            target = self._bytes[layers]
            shape = (*target.shape[:2], *payload.shape[1:])
            # Through memory of our own: payloads may be read-only, which from_numpy warns about.
            given = torch.empty(shape, dtype=torch.uint8, pin_memory=self._bytes.is_cuda)
            np.copyto(given.numpy(), payload.reshape(shape))
            moved = given.to(self._bytes.device, non_blocking=True)
            target.index_copy_(2, self._slots(runs), moved)
            self._synchronize()

    def _slots(self, runs: Runs) -> torch.Tensor:
        firsts = np.repeat(runs.slots - runs.places, runs.lengths)
        slots = firsts + np.arange(len(firsts))
        return torch.from_numpy(slots).to(self._bytes.device)

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
