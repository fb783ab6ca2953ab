"""Compiles the kernels before the first request needs them."""

import numpy as np

from engine.cpu import copy_kernels
from engine.cpu.int8_kernels import Int8Rows, int8_row, int8_rows, to_floats
from engine.cpu.layer_kernels import Weight, enter_attention, leave_attention
from engine.cpu.linear_kernels import linear_row, linear_rows
from engine.cpu.paged_decode import decode_rows
from engine.cpu.row_kernels import gate_silu, rms_norm, rotate


def compile_kernels() -> None:
    """Call each once, on arrays of the types that models pass; some seconds the first time."""
    row, square = np.ones((1, 4), np.float32), np.ones((4, 4), np.float32)
    heads = np.ones((1, 1, 4), np.float32)
    linear_row(row[0], square, row[0].copy())
    linear_rows(square, square, np.empty_like(square))
    rms_norm(row, row[0], 1e-6, np.empty_like(row))
    rotate(heads, row, row)
    gate_silu(row[0].copy(), row[0])
    _compile_layer(square)
    kv = np.ones((16, 1, 4), np.float32)
    one = np.ones(1, np.int32)
    table = (np.zeros((1, 1), np.int32), np.zeros(1, np.int32), one)
    decode_rows(heads, (kv, kv), table, (16, 0), 1.0, np.empty_like(heads))
    copy_kernels.compile_kernels()


def compile_int8_kernels() -> None:
    """The same for those of 8-bit weights, after `compile_kernels`."""
    row, square = np.ones((1, 4), np.float32), np.ones((4, 4), np.float32)
    weight = Int8Rows(np.ones((4, 4), np.int8), row[0])
    int8_row(row[0], *weight, row[0].copy())
    int8_rows(square, *weight, np.empty_like(square))
    to_floats(*weight, np.empty_like(square))
    _compile_layer(weight)


def _compile_layer(weight: Weight) -> None:
    """The halves of a layer whose weights are all of this kind, [4, 4]."""
    row = np.ones((1, 4), np.float32)
    heads, no_bias = np.ones((1, 1, 4), np.float32), np.empty(0, np.float32)
    biases, rotation = (no_bias, no_bias, no_bias), (row, row)
    out = (heads.copy(), heads.copy(), heads.copy())
    norm, inner = (row[0], 1e-6), np.empty((2, 4), np.float32)
    enter_attention(row, norm, (weight,) * 3, biases, rotation, out)
    leave_attention(row, row[0], norm, (weight,) * 4, inner, np.empty_like(row))
