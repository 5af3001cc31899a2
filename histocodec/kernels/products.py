"""Products of bytes for a tile, 3×3 layers for a row, as intrinsics of numba.

They take addresses, so that nothing is allocated and no index is checked; callers hold the arrays. Weights of dense
layers are packed as (outputs/64, inputs/4, 64, 4) int8; those of 3×3 layers as `histocodec.kernels.pack` says. Channels
come in whole groups of 64; those that a network lacks have weights of zero.
"""

from typing import Any

from llvmlite import ir

from histocodec.kernels.instructions import AMX, AVX2, AVX512_VNNI, AVX_VNNI, add_products, available, external
from histocodec.kernels.intrinsics import Intrinsic, native
from histocodec.kernels.jit import jit
from histocodec.kernels.vectors import F32, GROUP, I8, I16, I32, I64, Emitter, splat, vector

TILE = 6  # positions of a tile
TALL_TILE = 16  # those of AMX
INT8_BYTES = GROUP * 4  # of the weights for four inputs, and of the sums of one position
TILE_SUMS = 18 * INT8_BYTES  # bytes: room for the sums of any tile


def _tile(instructions: str, rows: int, across: int) -> Intrinsic:
    """acc[m][n] = start[n] + Σ a[m][k] · w[k][n], for `rows` positions and `across` vectors of outputs: addresses of a,
    bytes from one position to the next, w, inputs / 4, acc, which has 64 outputs for each position, and start."""

    def emit(builder: ir.IRBuilder, a: Any, stride: Any, w: Any, quads: Any, acc: Any, start: Any) -> None:
        e = Emitter(builder, instructions)
        firsts = [builder.add(a, e.times(stride, m)) for m in range(rows)]
        begun = [e.load(e.at(start, 4 * e.lanes * n), e.integers) for n in range(across)]

        def step(k: Any, sums: Any) -> list[Any]:
            here, inputs = builder.add(w, e.times(k, INT8_BYTES)), e.times(k, 4)
            weights = [e.load(e.at(here, 4 * e.lanes * n), e.integers) for n in range(across)]
            results = []
            for m in range(rows):
                seen = e.broadcast(e.load(builder.add(firsts[m], inputs), I32))
                for n in range(across):
                    results.append(add_products(builder, instructions, sums[m * across + n], seen, weights[n]))
            return results

        totals = e.loop(quads, step, begun * rows)
        for m in range(rows):
            for n in range(across):
                e.store(totals[m * across + n], e.at(acc, INT8_BYTES * m + 4 * e.lanes * n))

    return native(f"tile_{instructions}", 6, emit)


def _emit_tile_amx(builder: ir.IRBuilder, a: Any, stride: Any, w: Any, quads: Any, acc: Any, start: Any) -> None:
    """As `_tile`, for 16 positions and 64 outputs; inputs / 4 is a multiple of 16. Tiles 0 to 3 hold the sums, 4 the
    positions, 5 to 7 weights."""
    e = Emitter(builder, "amx")
    if not available("amx"):
        _emit_tall_tile(e, a, stride, w, quads, acc, start)
        return
    pointer, nothing = I8.as_pointer(), ir.VoidType()
    load, store = (
        external(builder, ir.FunctionType(nothing, [I8, pointer, I64]), f"llvm.x86.tile{name}64")
        for name in ("loadd", "stored")
    )
    products = external(builder, ir.FunctionType(nothing, [I8, I8, I8]), "llvm.x86.tdpbusd")
    wide = ir.Constant(I64, INT8_BYTES)

    def move(function: Any, tile: int, address: Any, rows_apart: Any) -> None:
        builder.call(function, [ir.Constant(I8, tile), builder.inttoptr(address, pointer), rows_apart])

    for n in range(4):
        move(load, n, e.at(start, 64 * n), ir.Constant(I64, 0))  # the same row for every position

    def step(k: Any, _: Any) -> list[Any]:
        here = builder.add(w, e.times(k, 16 * INT8_BYTES))
        move(load, 4, builder.add(a, e.times(k, 64)), stride)
        for n in range(4):
            move(load, 5 + n % 3, e.at(here, 64 * n), wide)
            builder.call(products, [ir.Constant(I8, tile) for tile in (n, 4, 5 + n % 3)])
        return []

    e.loop(builder.ashr(quads, ir.Constant(I64, 4)), step)
    for n in range(4):
        move(store, n, e.at(acc, 64 * n), wide)


def _emit_tall_tile(e: Emitter, a: Any, stride: Any, w: Any, quads: Any, acc: Any, start: Any) -> None:
    """What AMX does, where there is none."""
    builder = e.builder
    begun = [e.load(e.at(start, 64 * n), e.integers) for n in range(4)]

    def position(m: Any, _: Any) -> list[Any]:
        first, to = builder.add(a, builder.mul(stride, m)), builder.add(acc, e.times(m, INT8_BYTES))

        def step(k: Any, sums: Any) -> list[Any]:
            here, seen = builder.add(w, e.times(k, INT8_BYTES)), e.load(builder.add(first, e.times(k, 4)), I32)
            weights = [e.load(e.at(here, 64 * n), e.integers) for n in range(4)]
            return [add_products(builder, "amx", sums[n], e.broadcast(seen), weights[n]) for n in range(4)]

        for n, total in enumerate(e.loop(quads, step, begun)):
            e.store(total, e.at(to, 64 * n))
        return []

    e.loop(ir.Constant(I64, TALL_TILE), position)


# As many sums as the registers hold: 24 of 32, 12 of 16, and 6 of 16 where products need registers of their own.
tile_amx = native("tile_amx", 6, _emit_tile_amx)
tile_avx512_vnni = _tile("avx512-vnni", TILE, 4)
tile_avx_vnni = _tile("avx-vnni", TILE, 2)
tile_avx2 = _tile("avx2", TILE // 2, 2)
tile_generic = _tile("generic", TILE // 2, 2)


def _emit_tiles_on(builder: ir.IRBuilder, scratch: Any) -> None:
    """Palette 1; eight tiles of 16 rows, 64 bytes each."""
    e = Emitter(builder, "amx")
    if not available("amx"):
        return
    e.store(splat(0, I8, 64), scratch)
    e.store(ir.Constant(I8, 1), scratch)
    e.store(splat(64, I16, 8), e.at(scratch, 16))
    e.store(splat(16, I8, 8), e.at(scratch, 48))
    pointer = I8.as_pointer()
    function = external(builder, ir.FunctionType(ir.VoidType(), [pointer]), "llvm.x86.ldtilecfg")
    builder.call(function, [builder.inttoptr(scratch, pointer)])


def _emit_tiles_off(builder: ir.IRBuilder, scratch: Any) -> None:
    if available("amx"):
        builder.call(external(builder, ir.FunctionType(ir.VoidType(), []), "llvm.x86.tilerelease"), [])


tiles_on = native("tiles_on", 1, _emit_tiles_on)  # before the first tile of AMX in a kernel; uses 64 bytes of memory
tiles_off = native("tiles_off", 1, _emit_tiles_off)  # after the last, so that threads change quickly again


@jit
def products(instructions: int, a: int, stride: int, w: int, quads: int, acc: int, start: int) -> None:
    """acc (6, 64) int32, of AMX (16, 64), = start (64,) + a (6, 4·quads) uint8, whose positions are `stride` bytes
    apart, times w (quads, 64, 4)."""
    if instructions == AMX:
        tile_amx(a, stride, w, quads, acc, start)
    elif instructions == AVX512_VNNI:
        tile_avx512_vnni(a, stride, w, quads, acc, start)
    elif instructions == AVX_VNNI:
        for n in range(0, 256, 64):
            tile_avx_vnni(a, stride, w + n, quads, acc + n, start + n)
    elif instructions == AVX2:
        for m in range(0, 6, 3):
            for n in range(0, 256, 64):
                tile_avx2(a + m * stride, stride, w + n, quads, acc + m * 256 + n, start + n)
    else:
        for m in range(0, 6, 3):
            for n in range(0, 256, 32):
                tile_generic(a + m * stride, stride, w + n, quads, acc + m * 256 + n, start + n)


def _depthwise(instructions: str, *, up: bool = False) -> Intrinsic:
    """A 3×3 layer for four vectors of channels of a row: addresses of the three rows, one column before the first;
    bytes from one position to the next; w, bias and factor of these channels; the result's address and its bytes from
    one position to the next; and the number of positions, at least one. With `up`, halves are rounded up, and instead
    of the factor it takes the shift; the bias has the half in it."""

    def emit(
        builder: ir.IRBuilder, above: Any, here: Any, below: Any, stride: Any, w: Any, bias: Any, factor: Any,
        out: Any, out_stride: Any, count: Any,
    ) -> None:  # fmt: skip
        e = Emitter(builder, instructions)
        size, nothing = 4 * e.lanes, splat(0, I8, 4 * e.lanes)
        weights = [[e.load(e.at(w, size * (4 * n + q)), e.integers) for q in range(4)] for n in range(3)]
        offsets = [e.load(e.at(bias, size * q), e.integers) for q in range(4)]
        if up:
            shift = e.broadcast(builder.trunc(factor, I32))
        else:
            factors = [e.load(e.at(factor, size * q), e.floats) for q in range(4)]

        def interleaved(a: Any, b: Any, element: int) -> list[Any]:
            """The lower and the upper halves of each 16 bytes of a and b, in turns of `element` bytes."""
            count, per = size // element, 16 // element
            halves = []
            for half in (0, per // 2):
                order = [
                    source
                    for first in range(half, count, per)
                    for n in range(first, first + per // 2)
                    for source in (n, count + n)
                ]
                mask = ir.Constant(vector(I32, count), [ir.Constant(I32, n) for n in order])
                kind = vector(ir.IntType(8 * element), count)
                pair = (builder.bitcast(x, kind) for x in (a, b))
                halves.append(builder.shuffle_vector(*pair, mask))
            return halves

        def column(position: Any) -> list[Any]:
            """The bytes of three rows at one position, side by side in each lane of four vectors."""
            at = builder.mul(position, stride)
            x, y, z = (e.load(builder.add(row, at), vector(I8, size)) for row in (above, here, below))
            pairs = zip(interleaved(x, y, 1), interleaved(z, nothing, 1), strict=True)
            return [builder.bitcast(part, e.integers) for a, b in pairs for part in interleaved(a, b, 2)]

        def position(n: Any, seen: Any) -> list[Any]:
            right = column(builder.add(n, ir.Constant(I64, 2)))
            totals = []
            for q in range(4):
                total = offsets[q]
                for part, weight in zip((seen[q], seen[4 + q], right[q]), weights, strict=True):
                    total = add_products(builder, instructions, total, part, weight[q])
                totals.append(builder.ashr(total, shift) if up else e.as_integers(e.scaled(total, factors[q])))
            e.store(e.unsigned_bytes(totals), builder.add(out, builder.mul(n, out_stride)))
            return [*seen[4:], *right]

        e.loop(count, position, [*column(ir.Constant(I64, 0)), *column(ir.Constant(I64, 1))])

    return native(f"depthwise_{instructions}{'_up' if up else ''}", 10, emit)


depthwise_512 = _depthwise("avx512-vnni")
depthwise_256_vnni = _depthwise("avx-vnni")
depthwise_256 = _depthwise("avx2")
depthwise_128 = _depthwise("generic")
depthwise_512_up = _depthwise("avx512-vnni", up=True)
depthwise_256_vnni_up = _depthwise("avx-vnni", up=True)
depthwise_256_up = _depthwise("avx2", up=True)
depthwise_128_up = _depthwise("generic", up=True)


@jit
def depthwise_row(
    instructions: int, above: int, here: int, below: int, channels: int, w: int, bias: int, factor: int, out: int,
    stride: int, count: int, up: bool,
) -> None:  # fmt: skip
    """clip(round(layer), 0, 255) of a 3×3 layer for `count` positions of a row, uint8 at `out`, `stride` bytes from one
    position to the next. The three rows' addresses are those of the column before the first. With `up`, halves are
    rounded up, not to even, and `factor` is the shift."""
    step = 64 if instructions <= AVX512_VNNI else 32 if instructions <= AVX2 else 16
    for c in range(0, channels, step):
        x, y, z, to, b, v = above + c, here + c, below + c, out + c, bias + 4 * c, w + 12 * c
        f = factor if up else factor + 4 * c
        if instructions <= AVX512_VNNI and up:
            depthwise_512_up(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions <= AVX512_VNNI:
            depthwise_512(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions == AVX_VNNI and up:
            depthwise_256_vnni_up(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions == AVX_VNNI:
            depthwise_256_vnni(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions == AVX2 and up:
            depthwise_256_up(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions == AVX2:
            depthwise_256(x, y, z, channels, v, b, f, to, stride, count)
        elif up:
            depthwise_128_up(x, y, z, channels, v, b, f, to, stride, count)
        else:
            depthwise_128(x, y, z, channels, v, b, f, to, stride, count)


__all__ = ["F32", "TALL_TILE", "TILE", "TILE_SUMS", "depthwise_row", "products", "tiles_off", "tiles_on"]
