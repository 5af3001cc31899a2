"""Dense layers on the products of `histocodec.kernels.products`, with what follows them."""

from histocodec.kernels.jit import jit
from histocodec.kernels.products import activate, activate_up, add, colour, combine, products, put

EXTRA_ROWS = 6  # positions beyond the last that a tile may read
ACTIVATE, ACTIVATE_UP, ADD, PUT, COLOUR = range(5)  # what follows the products; see `products`


@jit
def dense(
    instructions: int, a: int, low: int, high: int, sums: int, stride: int, quads: int, count: int, w: int,
    bias: int, factor: int, groups: int, acc: int, then: int, out: int, out_stride: int, group_stride: int, mean: int,
    std: int,
) -> None:  # fmt: skip
    """A dense layer for `count` positions, whose bytes lie at `a`, `stride` apart, with 4 · `quads` inputs, and for
    `groups` × 64 outputs; what follows, `then`, goes to `out`. Where `low` is not 0, the inputs are
    a + low + 8 · (high - 128)."""
    for n in range(groups):
        w_n, bias_n, factor_n = w + n * quads * 256, bias + 256 * n, factor + 256 * n
        for m in range(0, count, 6):
            products(instructions, a + m * stride, stride, w_n, quads, acc)
            if low != 0:
                products(instructions, low + m * stride, stride, w_n, quads, acc + 1536)
                products(instructions, high + m * stride, stride, w_n, quads, acc + 3072)
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
