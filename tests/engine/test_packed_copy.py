"""What arrives is what was sent, however many arrays share a copy."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.packed_copy import ALIGNED_BYTES, packed_copy, to_device

tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(
        -(2**31), 2**31 - 1, shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)
    ),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.sampled_from([torch.int32, torch.int64]),
    st.integers(0, 9),
)


@given(st.lists(tensors, min_size=1, max_size=6))
def test_packed(sent: list[torch.Tensor]) -> None:
    got = packed_copy(sent, "cpu")
    assert [one.dtype for one in got] == [one.dtype for one in sent]
    assert all(torch.equal(one, other) for one, other in zip(got, sent, strict=True))
    assert all(one.storage_offset() * one.itemsize % ALIGNED_BYTES == 0 for one in got)
    assert len({one.untyped_storage().data_ptr() for one in got}) == 1, "one buffer, one copy"


def test_a_cpu_copies_nothing() -> None:
    array = np.arange(4)
    (tensor,) = to_device([array], "cpu")
    array[0] = 7
    assert tensor.tolist() == [7, 1, 2, 3]
