"""Dense layers on the products of `histocodec.kernels.products`, with what follows them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.kernels.jit import jit
from histocodec.kernels.products import activate, activate_up, add, colour, combine, products, put

Int = Any  # an integer of Python or numpy

EXTRA_ROWS = 6  # positions beyond the last that a tile may read
ACTIVATE, ACTIVATE_UP, ADD, PUT, COLOUR = range(5)  # what follows the products; see `products`


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
    instructions: Int, a: Int, low: Int, high: Int, sums: Int, stride: Int, quads: Int, count: Int, w: Int,
    bias: Int, factor: Int, groups: Int, acc: Int, then: Int, out: Int, out_stride: Int, group_stride: Int, mean: Int,
    std: Int,
) -> None:  # fmt: skip
    """A dense layer for `count` positions, whose bytes lie at `a`, `stride` apart, with 4 · `quads` inputs, and for
    `groups` × 64 outputs; what follows, `then`, goes to `out`. Where `low` is not 0, the inputs are
    a + low + 8 · (high - 128)."""
    for n in range(groups):
        w_n, bias_n, factor_n = w + n * quads * 256, bias + 256 * n, factor + 256 * n
        for m in range(0, count, 6):
            for part in range(3 if low != 0 else 1):  # one call, since each is compiled by itself
                seen = a if part == 0 else low if part == 1 else high
                products(instructions, seen + m * stride, stride, w_n, quads, acc + 1536 * part)
            if low != 0:
                for j in range(6):
                    combine(acc + 256 * j, acc + 1536 + 256 * j, acc + 3072 + 256 * j, sums + 256 * n)
            for j in range(min(6, count - m)):
                to = out + (m + j) * out_stride + n * group_stride
                if then == ACTIVATE:
                    activate(acc + 256 * j, bias_n, factor_n, to)
                elif then == ACTIVATE_UP:
                    activate_up(acc + 256 * j, bias_n, factor_n, to)
                elif then == ADD:
                    add(acc + 256 * j, bias_n, factor_n, to)
                elif then == PUT:
                    put(acc + 256 * j, bias_n, factor_n, to)
                else:
                    colour(acc + 256 * j, bias_n, factor_n, std + 4 * n, mean + 4 * n, to)
