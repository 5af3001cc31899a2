"""The kernels with which a GPU decodes, in Triton. Whole numbers throughout: products of bytes are added up in int32,
and what is float32 is exact (`histocodec.models.transforms.integer`), so that each gives what the CPU gives, bit for
bit.

Memory is channels last. Activations, 0 … 255, are held 128 too low, as int8; the biases make up for it. Launch with
`enable_fp_fusion=False`: a product and a sum are rounded one after the other.
"""

import triton
import triton.language as tl

from histocodec.entropy import rans, tables

ROUND = tl.constexpr(12582912.0)  # 1.5 · 2^23: added to what is small and taken away again, it rounds, ties to even
EVEN, UP, ADDED, VALUE, TOTAL = (tl.constexpr(n) for n in range(5))  # what becomes of a layer's sums; see `_finish`

LOWER = tl.constexpr(rans.LOWER)
PRECISION = tl.constexpr(tables.PRECISION)
SLOTS = tl.constexpr(tables.TOTAL - 1)
ESCAPE = tl.constexpr(-(1 << 31))  # instead of a value


@triton.jit
def _rounded(x, low: tl.constexpr, high: tl.constexpr):
    """clip(round(x), low, high)"""
    return (tl.minimum(tl.maximum(x, low), high) + ROUND) - ROUND


@triton.jit
def _finish(total, factor, at, mask, stream, out, THEN: tl.constexpr):
    """Stores clip(round(total · factor), 0, 255), with ties to EVEN or UP; stream + total · factor (ADDED); that VALUE
    itself; or the TOTAL."""
    if THEN == TOTAL:
        tl.store(out + at, total, mask=mask)
    else:
        value = total.to(tl.float32) * factor
        if THEN == ADDED:
            tl.store(out + at, tl.load(stream + at, mask=mask, other=0.0) + value, mask=mask)
        elif THEN == VALUE:
            tl.store(out + at, value, mask=mask)
        else:
            if THEN == UP:
                value = tl.minimum(tl.maximum(tl.floor(value + 0.5), 0.0), 255.0)
            else:
                value = _rounded(value, 0.0, 255.0)
            tl.store(out + at, (value.to(tl.int32) - 128).to(tl.int8), mask=mask)


@triton.jit
def dense(
    a, weight, bias, which, factor, stream, out, count, outputs, stride, out_stride, per,
    inputs: tl.constexpr, upper: tl.constexpr, THEN: tl.constexpr, MANY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A 1×1 layer: a (count, inputs) int8 in rows of `stride`, weight (outputs, inputs) int8, bias (outputs,) int32, or
    with MANY (…, outputs), of which `per` rows use the one that `which` says. Before them a row may have the `upper`
    bits of its first inputs, in eights."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there, wanted = rows < count, columns < outputs
    total = tl.zeros((ROWS, COLUMNS), tl.int32)
    for first in range(0, upper, STEP):
        k = first + tl.arange(0, STEP)
        some = tl.load(a + rows[:, None] * stride + k[None, :], mask=there[:, None] & (k < upper)[None, :], other=0)
        at = columns[None, :] * inputs + k[:, None]
        of = tl.load(weight + at, mask=wanted[None, :] & (k < upper)[:, None], other=0)
        total = tl.dot(some, of, total, out_dtype=tl.int32)
    total = total * 8
    for first in range(0, inputs, STEP):
        k = first + tl.arange(0, STEP)
        at = rows[:, None] * stride + upper + k[None, :]
        some = tl.load(a + at, mask=there[:, None] & (k < inputs)[None, :], other=0)
        at = columns[None, :] * inputs + k[:, None]
        of = tl.load(weight + at, mask=wanted[None, :] & (k < inputs)[:, None], other=0)
        total = tl.dot(some, of, total, out_dtype=tl.int32)
    mask = there[:, None] & wanted[None, :]
    if MANY:
        first_bias = tl.load(which + rows // per, mask=there, other=0).to(tl.int64) * outputs
        total += tl.load(bias + first_bias[:, None] + columns[None, :], mask=mask, other=0)
    else:
        total += tl.load(bias + columns, mask=wanted, other=0)[None, :]
    scale = tl.load(factor + columns, mask=wanted, other=0.0)[None, :]
    _finish(total, scale, rows[:, None] * out_stride + columns[None, :], mask, stream, out, THEN)


@triton.jit
def parted(
    x, coarse, fine, out, count, channels, fines,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr, FINES: tl.constexpr,
):  # fmt: skip
    """What `up` and `tail` see of a stream (count, channels) float32, in bytes: of the eleven bits of each channel the
    upper eight, then the lower three; then of the `fine` ones what rounding leaves, and sixteenths of the whole."""
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    there, row = (place < count)[:, None], out + place[:, None] * (2 * channels + 2 * fines)
    channel = tl.arange(0, CHANNELS)
    known = channel < channels
    value = tl.load(x + place[:, None] * channels + channel[None, :], mask=there & known[None, :], other=0.0)
    value = value * tl.load(coarse + channel, mask=known, other=0.0)[None, :]
    whole = _rounded(value, -1024.0, 1023.0).to(tl.int32)
    tl.store(row + channel[None, :], (whole >> 3).to(tl.int8), mask=there & known[None, :])
    tl.store(row + channels + channel[None, :], (whole & 7).to(tl.int8), mask=there & known[None, :])
    number = tl.arange(0, FINES)
    known = number < fines
    channel = tl.load(fine + number, mask=known, other=0)
    value = tl.load(x + place[:, None] * channels + channel[None, :], mask=there & known[None, :], other=0.0)
    value = value * tl.load(coarse + channel, mask=known, other=0.0)[None, :]
    rounded = _rounded(value, -1024.0, 1023.0)
    part = _rounded((value - rounded) * 16.0, -128.0, 127.0).to(tl.int32).to(tl.int8)
    sixteenth = _rounded(rounded * 0.0625, -64.0, 64.0).to(tl.int32).to(tl.int8)
    tl.store(row + 2 * channels + number[None, :], part, mask=there & known[None, :])
    tl.store(row + 2 * channels + fines + number[None, :], sixteenth, mask=there & known[None, :])


@triton.jit
def depthwise(
    a, weight, bias, factor, out, count, rows, columns, channels, out_stride,
    THEN: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A 3×3 layer: a (…, rows, columns, channels) int8, `count` places in all, weight (9, channels) int8. Around it lie
    activations of 0."""
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there, wanted = place < count, channel < channels
    row, column = (place // columns) % rows, place % columns
    total = tl.zeros((PLACES, CHANNELS), tl.int32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            inside = there & (row + i >= 1) & (row + i <= rows) & (column + j >= 1) & (column + j <= columns)
            at = (place + (i - 1) * columns + (j - 1))[:, None] * channels + channel[None, :]
            mask = inside[:, None] & wanted[None, :]  # with other=-128, Triton 3.6 gives -1 for some
            value = tl.where(mask, tl.load(a + at, mask=mask, other=0).to(tl.int32) + 128, 0)
            of = tl.load(weight + (3 * i + j) * channels + channel, mask=wanted, other=0).to(tl.int32)
            total += value * of[None, :]
    total += tl.load(bias + channel, mask=wanted, other=0)[None, :]
    scale = tl.load(factor + channel, mask=wanted, other=0.0)[None, :]
    at = place[:, None] * out_stride + channel[None, :]
    _finish(total, scale, at, there[:, None] & wanted[None, :], a, out, THEN)


@triton.jit
def seen(
    x, low, kept, count, rows, columns, channels, top, left, kept_rows, kept_columns,
    SPLIT: tl.constexpr, KEEP: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """What a block sees of a stream, clip(round(x), -128, 127), into `low` (…, rows, columns, channels) int8, and with
    KEEP the part of the stream from (top, left) on. With SPLIT x is (…, rows / 2, columns / 2, 2, 2, channels)."""
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (place < count)[:, None] & (channel < channels)[None, :]
    image, row, column = place // (rows * columns), (place // columns) % rows, place % columns
    first = place
    if SPLIT:
        first = ((image * (rows // 2) + row // 2) * (columns // 2) + column // 2) * 4 + row % 2 * 2 + column % 2
    value = tl.load(x + first[:, None] * channels + channel[None, :], mask=mask, other=0.0)
    tl.store(low + place[:, None] * channels + channel[None, :], _rounded(value, -128.0, 127.0).to(tl.int8), mask=mask)
    if KEEP:
        row, column = row - top, column - left
        inside = (row >= 0) & (row < kept_rows) & (column >= 0) & (column < kept_columns)
        at = (image * kept_rows + row) * kept_columns + column
        tl.store(kept + at[:, None] * channels + channel[None, :], value, mask=mask & inside[:, None])


@triton.jit
def entered(latents, scale, out, count, channels, PLACES: tl.constexpr, CHANNELS: tl.constexpr):
    """The stream that latents (count, channels) float32 begin: multiples of 1/64 within ±1024."""
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    mask = (place < count)[:, None] & known[None, :]
    at = place[:, None] * channels + channel[None, :]
    value = tl.load(latents + at, mask=mask, other=0.0) * tl.load(scale + channel, mask=known, other=0.0)[None, :]
    tl.store(out + at, _rounded(value * 64.0, -65536.0, 65536.0) * 0.015625, mask=mask)


@triton.jit
def pixels(blocks, mean, std, out, count, columns, PLACES: tl.constexpr):
    """Unshuffled pixels (…, columns, 192) float32, normalised → (…, 8, columns, 8, 3) uint8"""
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    channel = tl.arange(0, 256)
    mask = (place < count)[:, None] & (channel < 192)[None, :]
    colour, i, j = channel // 64, channel // 8 % 8, channel % 8
    value = tl.load(blocks + place[:, None] * 192 + channel[None, :], mask=mask, other=0.0)
    value = value * tl.load(std + colour, mask=colour < 3, other=0.0)[None, :]
    value = _rounded(value + tl.load(mean + colour, mask=colour < 3, other=0.0)[None, :], 0.0, 255.0)
    row, column = place // columns, place % columns
    at = (((row * 8)[:, None] + i[None, :]) * columns + column[:, None]) * 24 + (j * 3 + colour)[None, :]
    tl.store(out + at, value.to(tl.uint8), mask=mask)


@triton.jit
def distributions(
    accumulator, base, quality, y, weight, bias, extents, tables, whole, mean_shift, scale_shift, side, quads,
    STEP: tl.constexpr, COLUMNS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """One step of the prior: each coded element's table and whole mean, in coding order. accumulator is (4, chunks,
    side / 2, side / 2, 2, quads) int32, y (chunks, side, side, 4, quads) int16; weight (9, 4, quads) and bias (4,
    quads) are those of the linear prediction, which step 0 has not."""
    chunk = (tl.program_id(0) // (side // 2)).to(tl.int64)
    row, p = tl.program_id(0) % (side // 2), tl.program_id(1)
    group = p ^ STEP
    across, column, quad = side // 2, tl.arange(0, COLUMNS), tl.program_id(2) * QUADS + tl.arange(0, QUADS)
    some = tl.load(extents + 3 * chunk)
    cell_rows, cell_columns = tl.load(extents + 3 * chunk + 1), tl.load(extents + 3 * chunk + 2)
    known = quad < quads
    if row >= cell_rows:
        return
    coded = (column < cell_columns)[:, None] & (quad < some)[None, :]
    chunks = tl.num_programs(0) // across
    at = (((p * chunks + chunk) * across + row) * across + column)[:, None] * (2 * quads) + quad[None, :]
    mean = (tl.load(accumulator + at, mask=coded, other=0) + (1 << (mean_shift - 1))) >> mean_shift
    deviation = (tl.load(accumulator + at + quads, mask=coded, other=0) + (1 << (scale_shift - 1))) >> scale_shift
    if STEP > 0:
        i, j = (p == 1) | (p == 3), (p == 1) | (p == 2)
        down, right = 2 * row + i.to(tl.int32), 2 * column + j.to(tl.int32)
        total = tl.zeros((COLUMNS, QUADS), tl.int32) + 8  # a half, of the sixteenths that are taken away
        total += tl.load(bias + group * quads + quad, mask=known, other=0)[None, :]
        for m in tl.static_range(3):
            for n in tl.static_range(3):
                inside = (down + m >= 1) & (down + m <= side) & (right + n >= 1) & (right + n <= side)
                place = (chunk * side + down + (m - 1)) * side + right + (n - 1)
                value = tl.load(
                    y + (place * 4 + group)[:, None] * quads + quad[None, :], mask=coded & inside[:, None], other=0
                ).to(tl.int32)
                of = tl.load(weight + ((3 * m + n) * 4 + group) * quads + quad, mask=known, other=0).to(tl.int32)
                total += tl.minimum(tl.maximum(value, -1023), 1023) * of[None, :]
        mean += total >> 4
    row_of_base = tl.load(quality + chunk).to(tl.int64) * 4 + group
    scale = tl.load(base + row_of_base * quads + quad, mask=known, other=0)[None, :] + deviation
    scale = tl.minimum(tl.maximum(scale, 0), 47)
    order = ((p * some + quad) * cell_rows + row)[None, :] * cell_columns + column[:, None]
    order += chunk * (quads * side * side)
    tl.store(tables + order, ((scale << 3) + (mean & 7)).to(tl.int16), mask=coded)
    tl.store(whole + order, mean >> 3, mask=coded)


@triton.jit
def _ballot(flag):
    """Which of a warp's lanes have a flag (32,) that is not 0, in bits; the same in each lane"""
    return tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $1, 0; vote.sync.ballot.b32 $0, p, 0xffffffff; }",
        "=r,r", [flag], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _ones(bits):
    return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [bits], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def symbols(
    data, lengths, lanes, states, cursors, status, tables, whole, offset, coarse, entry, out, most,
    LIMIT: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    """One segment of each chunk's rANS stream, one warp a chunk (`histocodec.entropy.rans`): `lengths` (chunks,)
    integers, their `tables`, `whole` means and what comes `out` in coding order, in rows of `most`. What escaped its
    table is marked, for `escapes`: no state depends on it. Without a WARP's votes, as on a CPU, sums do the same."""
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
        at = base + first + lane
        later = used & (first + count + lane < length)  # what the next round looks at is fetched while this one works
        next_table = tl.load(tables + at + count, mask=later, other=0).to(tl.int32)
        next_mean = tl.load(whole + at + count, mask=later, other=0)
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
            here, taken = position + 2 * _ones(votes & below), 2 * _ones(votes)
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
        tl.store(out + at, tl.where(value == ESCAPE, -LIMIT - 1, result), mask=active)
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
    """What `symbols` marked, in its order, from the escape bytes at the end of each stream."""
    chunk = tl.program_id(0)
    length = tl.load(lengths + chunk)
    base = chunk.to(tl.int64) * most
    position, tail = tl.load(cursors + 2 * chunk), tl.load(cursors + 2 * chunk + 1)
    broken = tl.load(status + chunk)
    each = tl.arange(0, WIDTH)
    first = 0
    while first < length:
        value = tl.load(out + base + first + each, mask=first + each < length, other=0)
        nearest = tl.min(tl.where(value == -LIMIT - 1, each, WIDTH), 0)
        while (nearest < WIDTH) & (broken == 0):
            at = base + first + nearest
            table = tl.load(tables + at).to(tl.int32)
            u, shift, byte = tl.full((), 0, tl.int64), 0, tl.full((), 128, tl.int64)
            while (byte >= 128) & (broken == 0):
                broken = ((tail <= position) | (shift >= 35)).to(tl.int32)
                tail -= 1
                byte = tl.load(data + tail, mask=tail >= position, other=0).to(tl.int64)
                u |= (byte & 127) << shift
                shift += 7
            broken |= ((byte == 0) & (shift > 7)).to(tl.int32)
            half = (u >> 1).to(tl.int32)
            found = tl.where((u & 1) == 0, tl.load(high_of + table) + 1 + half, tl.load(low_of + table) - 1 - half)
            found = tl.load(whole + at) + found
            broken |= ((u >= 1 << 21) | (found < -LIMIT) | (found >= LIMIT)).to(tl.int32)  # no mean is so far away
            tl.store(out + at, found)
            nearest = tl.min(tl.where((value == -LIMIT - 1) & (each > nearest), each, WIDTH), 0)
        first += WIDTH
    tl.store(cursors + 2 * chunk + 1, tail)
    tl.store(status + chunk, broken)


@triton.jit
def placed(
    found, extents, compress, y, small, side, quads, STEP: tl.constexpr, COLUMNS: tl.constexpr, QUADS: tl.constexpr
):
    """One step's integers, in coding order, into y (chunks, side, side, 4, quads) int16 and, compressed, into `small`
    int8 of the same shape; both are zero elsewhere."""
    chunk = (tl.program_id(0) // (side // 2)).to(tl.int64)
    row, p = tl.program_id(0) % (side // 2), tl.program_id(1)
    column, quad = tl.arange(0, COLUMNS), tl.program_id(2) * QUADS + tl.arange(0, QUADS)
    some = tl.load(extents + 3 * chunk)
    cell_rows, cell_columns = tl.load(extents + 3 * chunk + 1), tl.load(extents + 3 * chunk + 2)
    if row >= cell_rows:
        return
    coded = (column < cell_columns)[:, None] & (quad < some)[None, :]
    order = ((p * some + quad) * cell_rows + row)[None, :] * cell_columns + column[:, None]
    value = tl.load(found + chunk * (quads * side * side) + order, mask=coded, other=0).to(tl.int32)
    i, j = ((p == 1) | (p == 3)).to(tl.int32), ((p == 1) | (p == 2)).to(tl.int32)
    place = (chunk * side + 2 * row + i) * side + 2 * column + j
    at = (place * 4 + (p ^ STEP))[:, None] * quads + quad[None, :]
    tl.store(y + at, value.to(tl.int16), mask=coded)
    size = tl.load(compress + tl.minimum(tl.abs(value), 1023)).to(tl.int32)
    tl.store(small + at, tl.where(value < 0, -size, size).to(tl.int8), mask=coded)


@triton.jit
def canvas(
    y, slots, gains, background, out, top, left, columns, count, side, across, quads,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Latents of many chunks, gains undone, side by side: out (…, columns, channels) float32, `count` places, of which
    the first is (top, left) of the grid of chunks `slots` (…, across): which of y (…, side, side, 4, quads) lies there,
    or -1 for the background. gains is (…, channels), of each chunk of y."""
    place = tl.program_id(0).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channels = 4 * quads
    there, known = place < count, channel < channels
    row, column = top + place // columns, left + place % columns
    slot = tl.load(slots + (row // side) * across + column // side, mask=there, other=-1).to(tl.int64)
    inside = (there & (slot >= 0))[:, None] & known[None, :]
    at = ((slot * side + row % side) * side + column % side)[:, None] * channels
    value = tl.load(y + at + (channel % 4 * quads + channel // 4)[None, :], mask=inside, other=0).to(tl.float32)
    value = value * tl.load(gains + slot[:, None] * channels + channel[None, :], mask=inside, other=0.0)
    empty = tl.load(background + channel, mask=known, other=0.0)[None, :]
    value = tl.where((slot >= 0)[:, None], value, empty)
    tl.store(out + place[:, None] * channels + channel[None, :], value, mask=there[:, None] & known[None, :])
