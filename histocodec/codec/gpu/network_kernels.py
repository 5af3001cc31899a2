"""Triton kernels of the networks on a GPU: layers of int8 products, and what lies between them.

Arithmetic is in integers: int8 products are added up in int32, and what is float32 is exact
(`histocodec.models.transforms.integer`), so that each kernel gives what the CPU gives, bit for bit.

Memory is channels last. Activations, 0 … 255, are held 128 too low, as int8; the biases make up for it. Launch with
`enable_fp_fusion=False`, so that a product and a sum are rounded one after the other.
"""

import triton
import triton.language as tl

ROUND = tl.constexpr(12582912.0)  # 1.5 · 2^23: adding it to a small number and taking it away rounds, ties to even
EVEN, UP, ADDED, VALUE, TOTAL = (tl.constexpr(n) for n in range(5))  # what becomes of a layer's sums; see `_finish`


@triton.jit
def _rounded(x, low: tl.constexpr, high: tl.constexpr):
    """clip(round(x), low, high), ties to even"""
    return (tl.minimum(tl.maximum(x, low), high) + ROUND) - ROUND


@triton.jit
def _finish(total, factor, index, mask, stream, out, THEN: tl.constexpr):
    """Store what becomes of a layer's sums: clip(round(total · factor), 0, 255), with ties to EVEN or UP, 128 too low;
    stream + total · factor (ADDED); total · factor (VALUE); or the sums themselves (TOTAL)."""
    if THEN == TOTAL:
        tl.store(out + index, total, mask=mask)
    else:
        value = total.to(tl.float32) * factor
        if THEN == ADDED:
            tl.store(out + index, tl.load(stream + index, mask=mask, other=0.0) + value, mask=mask)
        elif THEN == VALUE:
            tl.store(out + index, value, mask=mask)
        else:
            if THEN == UP:
                value = tl.minimum(tl.maximum(tl.floor(value + 0.5), 0.0), 255.0)
            else:
                value = _rounded(value, 0.0, 255.0)
            tl.store(out + index, (value.to(tl.int32) - 128).to(tl.int8), mask=mask)


@triton.jit
def dense(
    a, weight, bias, which, factor, stream, out, count, outputs, stride, out_stride, per,
    inputs: tl.constexpr, upper: tl.constexpr, THEN: tl.constexpr, MANY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A 1×1 layer: a (count, inputs) int8 in rows of `stride`, weight (outputs, inputs) int8, bias (outputs,) int32.
    With MANY, bias is (…, outputs), and `per` rows use the one that `which` names. In front of its `inputs`, a row may
    have `upper` more: the upper bits of the first inputs, in units of eight."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_mask, column_mask = rows < count, columns < outputs
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for first in range(0, upper, STEP):
        k = first + tl.arange(0, STEP)
        values = tl.load(
            a + rows[:, None] * stride + k[None, :], mask=row_mask[:, None] & (k < upper)[None, :], other=0
        )
        index = columns[None, :] * inputs + k[:, None]
        weights = tl.load(weight + index, mask=column_mask[None, :] & (k < upper)[:, None], other=0)
        total = tl.dot(values, weights, total, out_dtype=tl.int32)
    total = total * 8
    for first in range(0, inputs, STEP):
        k = first + tl.arange(0, STEP)
        index = rows[:, None] * stride + upper + k[None, :]
        values = tl.load(a + index, mask=row_mask[:, None] & (k < inputs)[None, :], other=0)
        index = columns[None, :] * inputs + k[:, None]
        weights = tl.load(weight + index, mask=column_mask[None, :] & (k < inputs)[:, None], other=0)
        total = tl.dot(values, weights, total, out_dtype=tl.int32)
    mask = row_mask[:, None] & column_mask[None, :]
    if MANY:
        first_bias = tl.load(which + rows // per, mask=row_mask, other=0).to(tl.int64) * outputs
        total += tl.load(bias + first_bias[:, None] + columns[None, :], mask=mask, other=0)
    else:
        total += tl.load(bias + columns, mask=column_mask, other=0)[None, :]
    scale = tl.load(factor + columns, mask=column_mask, other=0.0)[None, :]
    _finish(total, scale, rows[:, None] * out_stride + columns[None, :], mask, stream, out, THEN)


@triton.jit
def depthwise(
    a, weight, bias, factor, out, count, rows, columns, channels, out_stride,
    THEN: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A depthwise 3×3 layer: a (…, rows, columns, channels) int8, `count` positions in all, weight (9, channels) int8.
    Beyond the edge lie activations of 0."""
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    position_mask, channel_mask = position < count, channel < channels
    row, column = (position // columns) % rows, position % columns
    total = tl.zeros((POSITIONS, CHANNELS), tl.int32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            inside = position_mask & (row + i >= 1) & (row + i <= rows) & (column + j >= 1) & (column + j <= columns)
            index = (position + (i - 1) * columns + (j - 1))[:, None] * channels + channel[None, :]
            mask = inside[:, None] & channel_mask[None, :]  # with other=-128, Triton 3.6 gives -1 for some
            value = tl.where(mask, tl.load(a + index, mask=mask, other=0).to(tl.int32) + 128, 0)
            weights = tl.load(weight + (3 * i + j) * channels + channel, mask=channel_mask, other=0).to(tl.int32)
            total += value * weights[None, :]
    total += tl.load(bias + channel, mask=channel_mask, other=0)[None, :]
    scale = tl.load(factor + channel, mask=channel_mask, other=0.0)[None, :]
    index = position[:, None] * out_stride + channel[None, :]
    _finish(total, scale, index, position_mask[:, None] & channel_mask[None, :], a, out, THEN)


@triton.jit
def stream(latents, scale, out, count, channels, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """The stream that latents (count, channels) float32 enter as: multiples of 1/64 within ±1024."""
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_mask = channel < channels
    mask = (position < count)[:, None] & channel_mask[None, :]
    index = position[:, None] * channels + channel[None, :]
    value = (
        tl.load(latents + index, mask=mask, other=0.0) * tl.load(scale + channel, mask=channel_mask, other=0.0)[None, :]
    )
    tl.store(out + index, _rounded(value * 64.0, -65536.0, 65536.0) * 0.015625, mask=mask)


@triton.jit
def block_input(
    x, low, trimmed, count, rows, columns, channels, top, left, trimmed_rows, trimmed_columns,
    SPLIT: tl.constexpr, KEEP: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """What a residual block sees of a stream, clip(round(x), -128, 127), into `low` (…, rows, columns, channels) int8.
    With KEEP, the part of the stream from (top, left) on goes into `trimmed`. With SPLIT, x is (…, rows / 2,
    columns / 2, 2, 2, channels)."""
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (position < count)[:, None] & (channel < channels)[None, :]
    image, row, column = position // (rows * columns), (position // columns) % rows, position % columns
    first = position
    if SPLIT:
        first = ((image * (rows // 2) + row // 2) * (columns // 2) + column // 2) * 4 + row % 2 * 2 + column % 2
    value = tl.load(x + first[:, None] * channels + channel[None, :], mask=mask, other=0.0)
    tl.store(
        low + position[:, None] * channels + channel[None, :], _rounded(value, -128.0, 127.0).to(tl.int8), mask=mask
    )
    if KEEP:
        row, column = row - top, column - left
        inside = (row >= 0) & (row < trimmed_rows) & (column >= 0) & (column < trimmed_columns)
        index = (image * trimmed_rows + row) * trimmed_columns + column
        tl.store(trimmed + index[:, None] * channels + channel[None, :], value, mask=mask & inside[:, None])


@triton.jit
def wide_input(
    x, coarse, fine, out, count, channels, fines,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, FINES: tl.constexpr,
):  # fmt: skip
    """The bytes of a stream (count, channels) float32 that `up` and `tail` see: of the eleven bits of each channel the
    upper eight, then the lower three; then, of the `fine` channels, what rounding leaves in sixteenths, and the rounded
    value in units of sixteen."""
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    position_mask, row = (position < count)[:, None], out + position[:, None] * (2 * channels + 2 * fines)
    channel = tl.arange(0, CHANNELS)
    channel_mask = channel < channels
    value = tl.load(
        x + position[:, None] * channels + channel[None, :], mask=position_mask & channel_mask[None, :], other=0.0
    )
    value = value * tl.load(coarse + channel, mask=channel_mask, other=0.0)[None, :]
    whole = _rounded(value, -1024.0, 1023.0).to(tl.int32)
    tl.store(row + channel[None, :], (whole >> 3).to(tl.int8), mask=position_mask & channel_mask[None, :])
    tl.store(row + channels + channel[None, :], (whole & 7).to(tl.int8), mask=position_mask & channel_mask[None, :])
    number = tl.arange(0, FINES)
    fine_mask = number < fines
    channel = tl.load(fine + number, mask=fine_mask, other=0)
    value = tl.load(
        x + position[:, None] * channels + channel[None, :], mask=position_mask & fine_mask[None, :], other=0.0
    )
    value = value * tl.load(coarse + channel, mask=fine_mask, other=0.0)[None, :]
    rounded = _rounded(value, -1024.0, 1023.0)
    part = _rounded((value - rounded) * 16.0, -128.0, 127.0).to(tl.int32).to(tl.int8)
    sixteenth = _rounded(rounded * 0.0625, -64.0, 64.0).to(tl.int32).to(tl.int8)
    tl.store(row + 2 * channels + number[None, :], part, mask=position_mask & fine_mask[None, :])
    tl.store(row + 2 * channels + fines + number[None, :], sixteenth, mask=position_mask & fine_mask[None, :])


@triton.jit
def pixels(planes, mean, std, out, count, columns, POSITIONS: tl.constexpr):
    """Unshuffled pixels (…, columns, 192) float32, normalised → pixels (…, 8, columns, 8, 3) uint8."""
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.arange(0, 256)
    mask = (position < count)[:, None] & (channel < 192)[None, :]
    colour, i, j = channel // 64, channel // 8 % 8, channel % 8
    value = tl.load(planes + position[:, None] * 192 + channel[None, :], mask=mask, other=0.0)
    value = value * tl.load(std + colour, mask=colour < 3, other=0.0)[None, :]
    value = _rounded(value + tl.load(mean + colour, mask=colour < 3, other=0.0)[None, :], 0.0, 255.0)
    row, column = position // columns, position % columns
    index = (((row * 8)[:, None] + i[None, :]) * columns + column[:, None]) * 24 + (j * 3 + colour)[None, :]
    tl.store(out + index, value.to(tl.uint8), mask=mask)


@triton.jit
def canvas(
    y, slots, gains, background, out, top, left, columns, count, side, across, quads,
    POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The latents of many chunks side by side, with their gains undone: out (…, columns, channels) float32, `count`
    positions, the first of which is (top, left) in the grid of chunks. `slots` (…, across) says which chunk of y
    (…, side, side, 4, quads) lies at each place of the grid, or -1 for the background. `gains` (…, channels) are the
    inverse gains of each chunk of y."""
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channels = 4 * quads
    position_mask, channel_mask = position < count, channel < channels
    row, column = top + position // columns, left + position % columns
    slot = tl.load(slots + (row // side) * across + column // side, mask=position_mask, other=-1).to(tl.int64)
    inside = (position_mask & (slot >= 0))[:, None] & channel_mask[None, :]
    index = ((slot * side + row % side) * side + column % side)[:, None] * channels
    value = tl.load(y + index + (channel % 4 * quads + channel // 4)[None, :], mask=inside, other=0).to(tl.float32)
    value = value * tl.load(gains + slot[:, None] * channels + channel[None, :], mask=inside, other=0.0)
    background_value = tl.load(background + channel, mask=channel_mask, other=0.0)[None, :]
    value = tl.where((slot >= 0)[:, None], value, background_value)
    tl.store(
        out + position[:, None] * channels + channel[None, :],
        value,
        mask=position_mask[:, None] & channel_mask[None, :],
    )
