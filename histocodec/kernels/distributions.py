"""From the prior's sums to the codes of distributions, as intrinsics of numba.

A *code* is 512 · the whole part of the mean + the number of the frequency table, int32. The sums of 64 outputs are of
32 channels: their means, then their deviations.
"""

from typing import Any

from llvmlite import ir

from histocodec.kernels.epilogues import widths
from histocodec.kernels.instructions import AVX2, AVX512_VNNI, I16, I32, splat, vector
from histocodec.kernels.intrinsics import native
from histocodec.kernels.jit import jit
from histocodec.kernels.vectors import Emitter

CHANNELS = 32  # of one call
TABLE_BITS = 9  # of a code
SUMS, CODES = 8 * CHANNELS, 4 * CHANNELS  # bytes of one cell's sums and codes
MEAN_BITS, LAST_SCALE, LINEAR_SHIFT = 3, 47, 4  # as `histocodec.models.prior.graph` has them


def _emit_codes(
    e: Emitter, acc: Any, base: Any, mean_shift: Any, scale_shift: Any, predicted: Any, out: Any, count: Any
) -> None:  # fmt: skip
    builder = e.builder
    mean_by, scale_by = (e.broadcast(builder.trunc(shift, I32)) for shift in (mean_shift, scale_shift))

    def constant(value: int) -> Any:
        return splat(value, I32, e.lanes)

    def cell(m: Any, _: Any) -> list[Any]:
        sums, to = builder.add(acc, e.times(m, SUMS)), builder.add(out, e.times(m, CODES))
        more = builder.add(predicted, e.times(m, CODES))
        for n in range(0, CODES, 4 * e.lanes):
            mean = builder.ashr(e.load(e.at(sums, n), e.integers), mean_by)
            mean = builder.add(mean, builder.ashr(e.load(e.at(more, n), e.integers), constant(LINEAR_SHIFT)))
            deviation = builder.ashr(e.load(e.at(sums, CODES + n), e.integers), scale_by)
            scale = builder.add(e.load(e.at(base, n), e.integers), deviation)
            for bound, predicate in ((0, "<"), (LAST_SCALE, ">")):
                limit = constant(bound)
                scale = builder.select(builder.icmp_signed(predicate, scale, limit), limit, scale)
            whole = builder.shl(builder.ashr(mean, constant(MEAN_BITS)), constant(TABLE_BITS))
            phase = builder.and_(mean, constant((1 << MEAN_BITS) - 1))
            table = builder.or_(builder.shl(scale, constant(MEAN_BITS)), phase)
            e.store(builder.or_(whole, table), e.at(to, n))
        return []

    e.loop(count, cell)


def _emit_predict(
    e: Emitter, y: Any, row_bytes: Any, position_bytes: Any, weights: Any, bias: Any, out: Any, count: Any
) -> None:  # fmt: skip
    builder, half = e.builder, vector(I16, e.lanes)
    across = e.times(position_bytes, 2)  # from one cell to the next

    def cell(m: Any, _: Any) -> list[Any]:
        first, to = builder.add(y, builder.mul(m, across)), builder.add(out, e.times(m, CODES))
        rows = [builder.add(first, e.times(row_bytes, i)) for i in range(3)]
        places = [builder.add(row, e.times(position_bytes, j)) for row in rows for j in range(3)]
        for n in range(0, CHANNELS, e.lanes):
            total = e.load(e.at(bias, 4 * n), e.integers)
            for tap, place in enumerate(places):
                latent, weight = e.load(e.at(place, 2 * n), half), e.load(e.at(weights, 2 * (CHANNELS * tap + n)), half)
                pair = (builder.sext(x, e.integers) for x in (latent, weight))  # so LLVM multiplies 16 bits by 16
                total = builder.add(total, builder.mul(*pair))
            e.store(total, e.at(to, 4 * n))
        return []

    e.loop(count, cell)


def _emit_transpose(builder: ir.IRBuilder, cells: Any, out: Any, out_stride: Any) -> None:
    e = Emitter(builder, "avx512-vnni")
    for first in range(0, CHANNELS, 16):
        rows = [e.load(e.at(cells, CODES * m + 4 * first), e.integers) for m in range(16)]
        for width in (8, 4, 2, 1):  # exchanges the off-diagonal squares of this width
            low = [n + (16 - width if n & width else 0) for n in range(16)]
            high = [n + width if not n & width else n + 16 for n in range(16)]
            masks = [ir.Constant(e.integers, [ir.Constant(I32, n) for n in order]) for order in (low, high)]
            paired = list(rows)
            for m in range(16):
                if not m & width:
                    for to, mask in zip((m, m + width), masks, strict=True):
                        paired[to] = builder.shuffle_vector(rows[m], rows[m + width], mask)
            rows = paired
        for n, row in enumerate(rows):
            e.store(row, builder.add(out, e.times(out_stride, first + n)))


codes_512, codes_256, codes_128 = widths("codes", 7, _emit_codes)
predict_512, predict_256, predict_128 = widths("predict", 7, _emit_predict)
# Codes (16 cells, 32 channels) → (32 channels, 16 cells), of which one follows the other after `out_stride` bytes.
transpose = native("transpose", 3, _emit_transpose)


@jit
def codes(
    instructions: int, acc: int, base: int, mean_shift: int, scale_shift: int, predicted: int, out: int, count: int
) -> None:
    """The codes (count, 32) of cells, from their sums (count, 64) with all biases and halves, the channels' base
    indices (32,), and what the linear predictor adds to the means, (count, 32) in 1/16 of their unit; all int32."""
    if instructions <= AVX512_VNNI:
        codes_512(acc, base, mean_shift, scale_shift, predicted, out, count)
    elif instructions <= AVX2:
        codes_256(acc, base, mean_shift, scale_shift, predicted, out, count)
    else:
        codes_128(acc, base, mean_shift, scale_shift, predicted, out, count)


@jit
def predict(
    instructions: int, y: int, row_bytes: int, position_bytes: int, weights: int, bias: int, out: int, count: int
) -> None:
    """bias (32,) int32 + a 3×3 layer (9, 32) int16 on latents of 32 channels, int16 from -1023 to 1023, for every other
    position of a row: (count, 32) int32. `y` is where the first position's neighbours begin."""
    if instructions <= AVX512_VNNI:
        predict_512(y, row_bytes, position_bytes, weights, bias, out, count)
    elif instructions <= AVX2:
        predict_256(y, row_bytes, position_bytes, weights, bias, out, count)
    else:
        predict_128(y, row_bytes, position_bytes, weights, bias, out, count)
