"""Every launch compiles to machine code, without a GPU: a compiler needs none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.cuda import elementwise, paged_decode, paged_prefill, rotary, write_kv
from engine.cuda.paged_decode import PagedDecode
from tests.engine.cuda.paged_attention import Heads, Request, make_case

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Of A100 and H100 by compute capability: the most that a program may take."""
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
PRODUCTS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class Compiling:
    """In the place of a kernel: compiles what a launch asks for instead of running it."""

    def __init__(self, kernel: Any, capability: int) -> None:  # noqa: ANN401
        self.kernel = kernel
        self.capability = capability
        self.num_launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(0 < size < 65536 for size in grid[1:])
        return self._compile

    def _compile(self, *args: Any, **constants: Any) -> None:
        options = {
            name: constants.pop(name)
            for name in ("num_warps", "num_stages", "enable_fp_fusion")
            if name in constants
        }
        names = self.kernel.arg_names
        signature = dict(zip(names, map(_type, args), strict=False))
        signature |= dict.fromkeys(constants, "constexpr")
        assert set(signature) == set(names)
        source = ASTSource(
            fn=self.kernel,
            signature={name: signature[name] for name in names},
            constexprs=constants,
            attrs={
                (i,): [["tt.divisibility", 16]]
                for i, name in enumerate(names)
                if signature[name].startswith("*")
            },
        )
        target = GPUTarget("cuda", self.capability, 32)
        compiled = triton.compile(source, target=target, options=options)
        assert compiled.metadata.shared <= SHARED_BYTES[self.capability]
        assert compiled.asm["cubin"]
        self.num_launches += 1


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def compiling(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, capability: int
) -> Compiling:
    stand_in = Compiling(getattr(module, name), capability)
    monkeypatch.setattr(module, name, stand_in)
    return stand_in


SHAPES = [
    # id                      heads                                            window  capability
    ("8B", Heads(num_heads=32, num_kv_heads=8, dim=128, dtype=torch.bfloat16), None, 90),
    ("8B on A100", Heads(num_heads=32, num_kv_heads=8, dim=128, dtype=torch.bfloat16), None, 80),
    ("wide heads", Heads(num_heads=4, num_kv_heads=1, dim=256), 100, 90),
]


@pytest.mark.parametrize(
    ("heads", "window", "capability"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES]
)
def test_attention(
    heads: Heads, window: int | None, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (paged_decode, paged_prefill):
        monkeypatch.setattr(module, "product_dtype", lambda like: PRODUCTS[like.dtype])
    kernels = [
        compiling(monkeypatch, module, name, capability)
        for module, name in (
            (paged_decode, "_attend"),
            (paged_decode, "_join"),
            (paged_prefill, "_attend"),
        )
    ]
    case = make_case([Request(300), Request(1, 300)], heads)
    case.compute(paged_prefill.paged_prefill, window)
    for num_programs in (1, 264):
        case.compute(PagedDecode(num_programs), window)
    assert [kernel.num_launches for kernel in kernels] == [2, 1, 1]


def test_write(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = compiling(monkeypatch, write_kv, "_write", 80)
    rows, cache = torch.zeros(8, 4, 128), torch.zeros(64, 8, 128)
    for index in (slice(3, 7), torch.arange(4)):
        write_kv.write_kv(rows, rows, (cache, cache), index)
    assert kernel.num_launches == 2


def test_elementwise(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = compiling(monkeypatch, elementwise, "_rms_norm", 80)
    gate = compiling(monkeypatch, elementwise, "_silu_times", 80)
    x = torch.zeros(1, 2, 4096, dtype=torch.bfloat16)
    for round_first in (True, False):
        elementwise.rms_norm(x, x[0, 0], 1e-6, round_first=round_first)
    elementwise.silu_times(x, x)
    assert (norm.num_launches, gate.num_launches) == (2, 1)


def test_rotary(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = compiling(monkeypatch, rotary, "_rotate", 80)
    heads, angles = (torch.zeros(2, *size, dtype=torch.bfloat16) for size in ((4, 128), (128,)))
    rotary.rotate(heads, heads, angles, angles)
    assert kernel.num_launches == 1
