"""Dense layers on the products of `histocodec.kernels.products`, with what follows them."""

from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from histocodec.kernels.epilogues import combine, finish
from histocodec.kernels.instructions import AMX
from histocodec.kernels.intrinsics import native
from histocodec.kernels.jit import jit
from histocodec.kernels.products import TALL_TILE, TILE, TILE_SUMS, products
from histocodec.kernels.vectors import GROUP, I8, I32, I64, Emitter, splat, vector

Int = Any  # an integer of Python or numpy

EXTRA_ROWS = 16  # positions beyond the last that a tile may read
SUMS_BYTES = 3 * TILE_SUMS  # of the working memory of `dense`


@jit
def address(memory: NDArray[Any]) -> Int:
    """Where an array begins. numba has it as an unsigned number, which mixes badly with others."""
    return np.int64(memory.ctypes.data)


@jit
def fill(memory: NDArray[np.uint8], first: int, end: int, value: int) -> None:
    """Writes one byte over memory[first:end]. numba takes long to compile an assignment to a slice."""
    for n in range(first, end):
        memory[n] = value


@jit
def dense(
    instructions: Int, a: Int, low: Int, high: Int, sums: Int, zeros: Int, stride: Int, quads: Int, count: Int, w: Int,
    bias: Int, factor: Int, groups: Int, acc: Int, then: Int, out: Int, out_stride: Int, group_stride: Int, mean: Int,
    std: Int,
) -> None:  # fmt: skip
    """A dense layer for `count` positions, whose bytes lie at `a`, `stride` apart, with 4 · `quads` inputs, and for
    `groups` × 64 outputs; what follows, `then`, goes to `out`. Where `low` is not 0, the inputs are
    a + low + 8 · (high - 128), and at `zeros` are 64 zeros, int32. AMX needs multiples of 64 inputs."""
    tile = TALL_TILE if instructions == AMX else TILE
    for n in range(groups):
        w_n, bias_n, factor_n = w + n * quads * 256, bias + 256 * n, factor
        if then != 1:  # ACTIVATE_UP has one shift for all
            factor_n += 256 * n
        for m in range(0, count, tile):
            for part in range(3 if low != 0 else 1):
                seen = a if part == 0 else low if part == 1 else high
                start = bias_n if part == 0 else zeros
                products(instructions, seen + m * stride, stride, w_n, quads, acc + TILE_SUMS * part, start)
            here = min(tile, count - m)
            if low != 0:
                combine(instructions, acc, acc + TILE_SUMS, acc + 2 * TILE_SUMS, sums + 256 * n, here)
            to = out + m * out_stride + n * group_stride
            finish(instructions, then, acc, factor_n, to, out_stride, here, std + 4 * n, mean + 4 * n)


def _emit_lines(builder: ir.IRBuilder, address: Any, size: Any, value: int) -> None:
    e = Emitter(builder, "generic")

    def line(n: Any, _: Any) -> list[Any]:
        e.store(splat(value, I8, 64), builder.add(address, e.times(n, 64)))
        return []

    e.loop(builder.ashr(size, ir.Constant(I64, 6)), line)


def _emit_clear(builder: ir.IRBuilder, address: Any, size: Any) -> None:
    _emit_lines(builder, address, size, 0)


def _emit_clear_raised(builder: ir.IRBuilder, address: Any, size: Any) -> None:
    _emit_lines(builder, address, size, -128)


def _emit_interleave(builder: ir.IRBuilder, planes: Any, out: Any, stride: Any, count: Any) -> None:
    e, eight = Emitter(builder, "generic"), vector(I8, 8)
    sixteen = ir.Constant(vector(I32, 16), [ir.Constant(I32, n) for n in range(16)])
    order = [source for n in range(8) for source in (n, 8 + n, 16 + n)]
    mask = ir.Constant(vector(I32, 24), [ir.Constant(I32, n) for n in order])

    def position(m: Any, _: Any) -> list[Any]:
        at, to = builder.add(planes, e.times(m, 3 * GROUP)), builder.add(out, e.times(m, 24))
        for row in range(8):
            red, green, blue = (e.load(e.at(at, GROUP * colour + 8 * row), eight) for colour in range(3))
            pair = builder.shuffle_vector(red, green, sixteen)
            padded = builder.shuffle_vector(blue, blue, sixteen)
            e.store(builder.shuffle_vector(pair, padded, mask), builder.add(to, e.times(stride, row)))
        return []

    e.loop(count, position)


clear = native("clear", 2, _emit_clear)  # zeros, so many bytes, a multiple of 64 above 0
clear_raised = native("clear_raised", 2, _emit_clear_raised)  # likewise zeros that are held 128 too high
# (count, 3, 8, 8) uint8 → 8 rows of 8 · count pixels, `stride` bytes apart.
interleave = native("interleave", 4, _emit_interleave)
