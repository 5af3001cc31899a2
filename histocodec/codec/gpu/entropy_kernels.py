"""Triton kernels of entropy decoding on a GPU: the last step of the prior, the rANS streams, and where latents go.

All arithmetic is in integers, and the results are those of `histocodec.codec.chunk` on a CPU.
"""

import triton
import triton.language as tl

from histocodec.entropy import rans, tables

LOWER = tl.constexpr(rans.LOWER)
PRECISION = tl.constexpr(tables.PRECISION)
SLOTS = tl.constexpr(tables.TOTAL - 1)
ESCAPE = tl.constexpr(-(1 << 31))  # stands for a value that escaped its table


@triton.jit
def distributions(
    accumulator, base, quality, y, weight, bias, extents, tables, whole, mean_shift, scale_shift, side, quads,
    STEP: tl.constexpr, COLUMNS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """One step of the prior: the table and the whole mean of each coded element, in coding order. accumulator is (4,
    chunks, side / 2, side / 2, 2, quads) int32, y (chunks, side, side, 4, quads) int16. weight (9, 4, quads) and bias
    (4, quads) are those of the linear prediction, which step 0 does not have."""
    chunk = (tl.program_id(0) // (side // 2)).to(tl.int64)
    row, p = tl.program_id(0) % (side // 2), tl.program_id(1)
    group = p ^ STEP
    across, column, quad = side // 2, tl.arange(0, COLUMNS), tl.program_id(2) * QUADS + tl.arange(0, QUADS)
    coded_quads = tl.load(extents + 3 * chunk)
    cell_rows, cell_columns = tl.load(extents + 3 * chunk + 1), tl.load(extents + 3 * chunk + 2)
    quad_mask = quad < quads
    if row >= cell_rows:
        return
    coded = (column < cell_columns)[:, None] & (quad < coded_quads)[None, :]
    chunks = tl.num_programs(0) // across
    index = (((p * chunks + chunk) * across + row) * across + column)[:, None] * (2 * quads) + quad[None, :]
    mean = (tl.load(accumulator + index, mask=coded, other=0) + (1 << (mean_shift - 1))) >> mean_shift
    deviation = (tl.load(accumulator + index + quads, mask=coded, other=0) + (1 << (scale_shift - 1))) >> scale_shift
    if STEP > 0:
        i, j = (p == 1) | (p == 3), (p == 1) | (p == 2)
        down, right = 2 * row + i.to(tl.int32), 2 * column + j.to(tl.int32)
        total = tl.zeros((COLUMNS, QUADS), tl.int32) + 8  # half of the sixteenth by which it is divided below
        total += tl.load(bias + group * quads + quad, mask=quad_mask, other=0)[None, :]
        for m in tl.static_range(3):
            for n in tl.static_range(3):
                inside = (down + m >= 1) & (down + m <= side) & (right + n >= 1) & (right + n <= side)
                position = (chunk * side + down + (m - 1)) * side + right + (n - 1)
                value = tl.load(
                    y + (position * 4 + group)[:, None] * quads + quad[None, :], mask=coded & inside[:, None], other=0
                ).to(tl.int32)
                weights = tl.load(weight + ((3 * m + n) * 4 + group) * quads + quad, mask=quad_mask, other=0).to(
                    tl.int32
                )
                total += tl.minimum(tl.maximum(value, -1023), 1023) * weights[None, :]
        mean += total >> 4
    row_of_base = tl.load(quality + chunk).to(tl.int64) * 4 + group
    scale = tl.load(base + row_of_base * quads + quad, mask=quad_mask, other=0)[None, :] + deviation
    scale = tl.minimum(tl.maximum(scale, 0), 47)
    order = ((p * coded_quads + quad) * cell_rows + row)[None, :] * cell_columns + column[:, None]
    order += chunk * (quads * side * side)
    tl.store(tables + order, ((scale << 3) + (mean & 7)).to(tl.int16), mask=coded)
    tl.store(whole + order, mean >> 3, mask=coded)


@triton.jit
def _ballot(flag):
    """The lanes of a warp whose flag (32,) is not 0, as bits; the same number in every lane."""
    return tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $1, 0; vote.sync.ballot.b32 $0, p, 0xffffffff; }",
        "=r,r", [flag], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _count_ones(bits):
    """How many bits are set."""
    return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [bits], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def symbols(
    data, lengths, lanes, states, cursors, status, tables, whole, offset, coarse, entry, out, most,
    LIMIT: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    """One segment of each chunk's rANS stream, one warp a chunk (`histocodec.entropy.rans`).

    The segment has `lengths` (chunks,) integers. Their `tables`, their `whole` means and the integers that come `out`
    lie in coding order, in rows of `most`. A value that escaped its table is marked for `escapes`, since no state
    depends on it. Without the votes of a WARP, as on a CPU, sums do the same."""
    chunk = tl.program_id(0)
    lane = tl.arange(0, 32)
    below = (1 << lane) - 1
    count, length = tl.load(lanes + chunk), tl.load(lengths + chunk)
    base = chunk.to(tl.int64) * most
    used = lane < count
    state = tl.load(states + 32 * chunk + lane, mask=used, other=0)
    position = tl.load(cursors + 2 * chunk) + 0 * lane  # in bytes
    end = tl.load(cursors + 2 * chunk + 1)
    broken = 0 * lane
    active = used & (lane < length)
    table = tl.load(tables + base + lane, mask=active, other=0).to(tl.int32)
    mean = tl.load(whole + base + lane, mask=active, other=0)
    first = 0
    while first < length:
        index = base + first + lane
        # What the next round needs is fetched while this one works.
        later = used & (first + count + lane < length)
        next_table = tl.load(tables + index + count, mask=later, other=0).to(tl.int32)
        next_mean = tl.load(whole + index + count, mask=later, other=0)
        slot = state & SLOTS
        number = tl.load(coarse + (table << 8) + (slot.to(tl.int32) >> 6), mask=active, other=0).to(tl.int32)
        number += tl.load(offset + table)
        packed = tl.load(entry + number, mask=active, other=0)
        above = slot - ((packed >> 32) & 0xFFFF)
        later_entry = (active & (above >= (packed >> 48))).to(tl.int32)
        while tl.max(later_entry, 0) > 0:  # seldom: most entries are wider than what `coarse` tells apart
            number += later_entry
            packed = tl.load(entry + number, mask=active, other=0)
            above = slot - ((packed >> 32) & 0xFFFF)
            later_entry = (active & (above >= (packed >> 48))).to(tl.int32)
        rest = (packed >> 48) * (state >> PRECISION) + above
        short = (active & (rest < LOWER)).to(tl.int32)
        if WARP:
            votes = _ballot(short)
            here, taken = position + 2 * _count_ones(votes & below), 2 * _count_ones(votes)
        else:
            here, taken = position + 2 * (tl.cumsum(short, 0) - short), 2 * tl.sum(short, 0)
        fetched = (short == 1) & (here + 1 < end)
        word = tl.load(data + here, mask=fetched, other=0).to(tl.int64)
        word |= tl.load(data + here + 1, mask=fetched, other=0).to(tl.int64) << 8
        position += taken
        rest = tl.where(short == 1, (rest << 16) | word, rest)
        state = tl.where(active, rest, state)
        value = packed.to(tl.int32)
        result = value + mean
        broken |= (active & (value != ESCAPE) & ((result < -LIMIT) | (result >= LIMIT))).to(tl.int32)
        tl.store(out + index, tl.where(value == ESCAPE, -LIMIT - 1, result), mask=active)
        active, table, mean = later, next_table, next_mean
        first += count
    tl.store(states + 32 * chunk + lane, state, mask=used)
    tl.store(cursors + 2 * chunk, tl.max(position, 0))
    tl.store(status + chunk, tl.load(status + chunk) | tl.max(broken, 0))


@triton.jit
def escapes(
    data, lengths, cursors, status, tables, whole, high_of, low_of, out, most,
    LIMIT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The values that `symbols` marked, in its order, from the escape bytes at the end of each stream."""
    chunk = tl.program_id(0)
    length = tl.load(lengths + chunk)
    base = chunk.to(tl.int64) * most
    position, tail = tl.load(cursors + 2 * chunk), tl.load(cursors + 2 * chunk + 1)
    broken = tl.load(status + chunk)
    offset_in_row = tl.arange(0, WIDTH)
    first = 0
    while first < length:
        value = tl.load(out + base + first + offset_in_row, mask=first + offset_in_row < length, other=0)
        nearest = tl.min(tl.where(value == -LIMIT - 1, offset_in_row, WIDTH), 0)
        while (nearest < WIDTH) & (broken == 0):
            index = base + first + nearest
            table = tl.load(tables + index).to(tl.int32)
            u, shift, byte = tl.full((), 0, tl.int64), 0, tl.full((), 128, tl.int64)
            while (byte >= 128) & (broken == 0):
                broken = ((tail <= position) | (shift >= 35)).to(tl.int32)
                tail -= 1
                byte = tl.load(data + tail, mask=tail >= position, other=0).to(tl.int64)
                u |= (byte & 127) << shift
                shift += 7
            broken |= ((byte == 0) & (shift > 7)).to(tl.int32)
            half = (u >> 1).to(tl.int32)
            result = tl.where((u & 1) == 0, tl.load(high_of + table) + 1 + half, tl.load(low_of + table) - 1 - half)
            result = tl.load(whole + index) + result
            broken |= ((u >= 1 << 21) | (result < -LIMIT) | (result >= LIMIT)).to(tl.int32)  # no mean is so far away
            tl.store(out + index, result)
            nearest = tl.min(tl.where((value == -LIMIT - 1) & (offset_in_row > nearest), offset_in_row, WIDTH), 0)
        first += WIDTH
    tl.store(cursors + 2 * chunk + 1, tail)
    tl.store(status + chunk, broken)


@triton.jit
def placed(
    values, extents, compress, y, small, side, quads, STEP: tl.constexpr, COLUMNS: tl.constexpr, QUADS: tl.constexpr
):
    """The integers of one step, in coding order, into y (chunks, side, side, 4, quads) int16 and, compressed by
    `compress`, into `small` int8 of the same shape. Both are 0 elsewhere."""
    chunk = (tl.program_id(0) // (side // 2)).to(tl.int64)
    row, p = tl.program_id(0) % (side // 2), tl.program_id(1)
    column, quad = tl.arange(0, COLUMNS), tl.program_id(2) * QUADS + tl.arange(0, QUADS)
    coded_quads = tl.load(extents + 3 * chunk)
    cell_rows, cell_columns = tl.load(extents + 3 * chunk + 1), tl.load(extents + 3 * chunk + 2)
    if row >= cell_rows:
        return
    coded = (column < cell_columns)[:, None] & (quad < coded_quads)[None, :]
    order = ((p * coded_quads + quad) * cell_rows + row)[None, :] * cell_columns + column[:, None]
    value = tl.load(values + chunk * (quads * side * side) + order, mask=coded, other=0).to(tl.int32)
    i, j = ((p == 1) | (p == 3)).to(tl.int32), ((p == 1) | (p == 2)).to(tl.int32)
    position = (chunk * side + 2 * row + i) * side + 2 * column + j
    index = (position * 4 + (p ^ STEP))[:, None] * quads + quad[None, :]
    tl.store(y + index, value.to(tl.int16), mask=coded)
    size = tl.load(compress + tl.minimum(tl.abs(value), 1023)).to(tl.int32)
    tl.store(small + index, tl.where(value < 0, -size, size).to(tl.int8), mask=coded)
