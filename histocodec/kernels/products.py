"""Layers of a network as intrinsics of numba: products of bytes for a tile, 3×3 layers for a row, what follows them.

They take addresses, so that nothing is allocated and no index is checked; callers hold the arrays. Weights of dense
layers are packed as (outputs/64, inputs/4, 64, 4) int8, those of 3×3 layers as (channels/16, 3 columns, 16, 3 rows and
a zero) int8. Channels come in whole groups of 64; those that a network lacks have weights of zero.
"""

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from histocodec.kernels.instructions import add_products
from histocodec.kernels.jit import jit
from histocodec.kernels.vectors import F32, I8, I16, I32, I64, LANES, Emitter, splat, vector

GROUP = 64  # channels
TILE = 6  # positions of a tile
INT8_BYTES = GROUP * 4  # of the weights for four inputs

Intrinsic = Callable[..., Any]


def _intrinsic(name: str, arguments: int, emit: Callable[..., Any], returns: types.Type = types.void) -> Intrinsic:
    """An intrinsic on 64-bit integers, whose code `emit` writes."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        result = emit(builder, *args)
        return context.get_dummy_value() if result is None else result

    signature = returns(*[types.int64] * arguments)

    def typed(typing_context: Any, *addresses: Any) -> Any:
        return signature, codegen

    names = ["typing_context", *(f"address{n}" for n in range(arguments))]
    positional = [Parameter(each, Parameter.POSITIONAL_OR_KEYWORD) for each in names]
    typed.__signature__ = Signature(positional)  # type: ignore[attr-defined]  # numba asks for it, and wants no *
    typed.__name__ = name
    return cast(Intrinsic, intrinsic(typed))


def _tile(name: str, lanes: int, rows: int, across: int) -> Intrinsic:
    """acc[m][n] = Σ a[m][k] · w[k][n], for `rows` positions and `across` vectors of outputs: addresses of a, bytes from
    one position to the next, w, inputs / 4, and acc, which has 64 outputs for each position."""

    def emit(builder: ir.IRBuilder, a: Any, stride: Any, w: Any, quads: Any, acc: Any) -> None:
        e, kind = Emitter(builder), vector(I32, lanes)
        before, function = builder.block, builder.function
        loop, done = function.append_basic_block(f"{name}.loop"), function.append_basic_block(f"{name}.done")
        firsts = [builder.add(a, builder.mul(stride, ir.Constant(I64, m))) for m in range(rows)]
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(I64)
        k.add_incoming(ir.Constant(I64, 0), before)
        sums = []
        for _ in range(rows * across):
            total = builder.phi(kind)
            total.add_incoming(splat(0, I32, lanes), before)
            sums.append(total)
        here = builder.add(w, builder.mul(k, ir.Constant(I64, INT8_BYTES)))
        weights = [e.load(e.at(here, 4 * lanes * n), kind) for n in range(across)]
        step = builder.mul(k, ir.Constant(I64, 4))
        for m in range(rows):
            seen = e.broadcast(e.load(builder.add(firsts[m], step), I32), lanes)
            for n in range(across):
                total = sums[m * across + n]
                total.add_incoming(add_products(builder, instructions, total, seen, weights[n]), loop)
        k_next = builder.add(k, ir.Constant(I64, 1))
        k.add_incoming(k_next, loop)
        builder.cbranch(builder.icmp_signed("<", k_next, quads), loop, done)
        builder.position_at_end(done)
        for m in range(rows):
            for n in range(across):
                result = next(value for value, block in sums[m * across + n].incomings if block is loop)
                e.store(result, e.at(acc, 4 * GROUP * m + 4 * lanes * n))

    instructions = name.replace("tile_", "").replace("_", "-")
    return _intrinsic(name, 5, emit)


# As many sums as the registers hold: 24 of 32, 12 of 16, and 6 of 16 where products need registers of their own.
tile_avx512_vnni = _tile("tile_avx512_vnni", 16, 6, 4)
tile_avx_vnni = _tile("tile_avx_vnni", 8, 6, 2)
tile_avx2 = _tile("tile_avx2", 8, 3, 2)
tile_generic = _tile("tile_generic", 4, 3, 2)


@jit
def products(instructions: int, a: int, stride: int, w: int, quads: int, acc: int) -> None:
    """acc (6, 64) int32 = a (6, 4·quads) uint8, whose positions are `stride` bytes apart, times w (quads, 64, 4)."""
    if instructions == 0:
        tile_avx512_vnni(a, stride, w, quads, acc)
    elif instructions == 1:
        for n in range(0, 256, 64):
            tile_avx_vnni(a, stride, w + n, quads, acc + n)
    elif instructions == 2:
        for m in range(0, 6, 3):
            for n in range(0, 256, 64):
                tile_avx2(a + m * stride, stride, w + n, quads, acc + m * 256 + n)
    else:
        for m in range(0, 6, 3):
            for n in range(0, 256, 32):
                tile_generic(a + m * stride, stride, w + n, quads, acc + m * 256 + n)


def _depthwise(name: str, lanes: int, *, up: bool = False) -> Intrinsic:
    """A 3×3 layer for `lanes` channels of a row: addresses of the three rows, one column before the first; bytes from
    one position to the next; w, bias and factor of these channels; the result's address and its bytes from one
    position to the next; and the number of positions, at least one."""

    def emit(
        builder: ir.IRBuilder, above: Any, here: Any, below: Any, stride: Any, w: Any, bias: Any, factor: Any,
        out: Any, out_stride: Any, count: Any,
    ) -> None:  # fmt: skip
        e, kind = Emitter(builder), vector(I32, lanes)
        weights = [e.load(e.at(w, 64 * n), kind) for n in range(3)]
        offsets, factors = e.load(bias, kind), e.load(factor, vector(F32, lanes))

        def column(position: Any) -> Any:
            """The bytes of three rows at one position, side by side in each lane."""
            at = builder.mul(position, stride)
            total = None
            for n, row in enumerate((above, here, below)):
                wide = builder.zext(e.load(builder.add(row, at), vector(I8, lanes)), kind)
                wide = builder.shl(wide, splat(8 * n, I32, lanes)) if n else wide
                total = wide if total is None else builder.or_(total, wide)
            return total

        first, second = column(ir.Constant(I64, 0)), column(ir.Constant(I64, 1))
        before, function = builder.block, builder.function
        loop, done = function.append_basic_block(f"{name}.loop"), function.append_basic_block(f"{name}.done")
        builder.branch(loop)
        builder.position_at_end(loop)
        n, left, middle = builder.phi(I64), builder.phi(kind), builder.phi(kind)
        right = column(builder.add(n, ir.Constant(I64, 2)))
        total = offsets
        for part, weight in zip((left, middle, right), weights, strict=True):
            total = add_products(builder, instructions, total, part, weight)
        exact = e.scaled(total, splat(0, I32, lanes), factors)
        value = e.limited(e.rounded_up(exact) if up else e.rounded(exact), 0, 255)
        e.store(e.as_bytes(value), builder.add(out, builder.mul(n, out_stride)))
        n_next = builder.add(n, ir.Constant(I64, 1))
        for phi, start, later in (
            (n, ir.Constant(I64, 0), n_next), (left, first, middle), (middle, second, right)
        ):  # fmt: skip
            phi.add_incoming(start, before)
            phi.add_incoming(later, loop)
        builder.cbranch(builder.icmp_signed("<", n_next, count), loop, done)
        builder.position_at_end(done)

    instructions = name.removeprefix("depthwise_").removesuffix("_up").replace("_", "-")
    return _intrinsic(name, 10, emit)


depthwise_avx512_vnni = _depthwise("depthwise_avx512_vnni", 16)
depthwise_avx_vnni = _depthwise("depthwise_avx_vnni", 8)
depthwise_avx2 = _depthwise("depthwise_avx2", 8)
depthwise_generic = _depthwise("depthwise_generic", 4)
depthwise_avx512_vnni_up = _depthwise("depthwise_avx512_vnni_up", 16, up=True)
depthwise_avx_vnni_up = _depthwise("depthwise_avx_vnni_up", 8, up=True)
depthwise_avx2_up = _depthwise("depthwise_avx2_up", 8, up=True)
depthwise_generic_up = _depthwise("depthwise_generic_up", 4, up=True)


@jit
def depthwise_row(
    instructions: int, above: int, here: int, below: int, channels: int, w: int, bias: int, factor: int, out: int,
    stride: int, count: int, up: bool,
) -> None:  # fmt: skip
    """clip(round(layer), 0, 255) of a 3×3 layer for `count` positions of a row, uint8 at `out`, `stride` bytes from one
    position to the next. The three rows' addresses are those of the column before the first. With `up`, halves are
    rounded up, not to even."""
    lanes = 16 if instructions == 0 else 4 if instructions == 3 else 8
    for c in range(0, channels, lanes):
        x, y, z, to, b, f = above + c, here + c, below + c, out + c, bias + 4 * c, factor + 4 * c
        v = w + c // 16 * 192 + 4 * (c % 16)
        if instructions == 0 and up:
            depthwise_avx512_vnni_up(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions == 0:
            depthwise_avx512_vnni(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions == 1 and up:
            depthwise_avx_vnni_up(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions == 1:
            depthwise_avx_vnni(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions == 2 and up:
            depthwise_avx2_up(x, y, z, channels, v, b, f, to, stride, count)
        elif instructions == 2:
            depthwise_avx2(x, y, z, channels, v, b, f, to, stride, count)
        elif up:
            depthwise_generic_up(x, y, z, channels, v, b, f, to, stride, count)
        else:
            depthwise_generic(x, y, z, channels, v, b, f, to, stride, count)


# What follows the products of one position and 64 outputs.


def _result(e: Emitter, n: int, acc: Any, bias: Any, factor: Any) -> Any:
    kind = vector(I32, LANES)
    of_floats = e.load(e.at(factor, 4 * n), vector(F32, LANES))
    return e.scaled(e.load(e.at(acc, 4 * n), kind), e.load(e.at(bias, 4 * n), kind), of_floats)


def _emit_activate(builder: ir.IRBuilder, acc: Any, bias: Any, factor: Any, out: Any) -> None:
    e = Emitter(builder)
    for n in range(0, GROUP, LANES):
        value = e.limited(e.rounded(_result(e, n, acc, bias, factor)), 0, 255)
        e.store(e.as_bytes(value), e.at(out, n))


def _emit_activate_up(builder: ir.IRBuilder, acc: Any, bias: Any, factor: Any, out: Any) -> None:
    e = Emitter(builder)
    for n in range(0, GROUP, LANES):
        value = e.limited(e.rounded_up(_result(e, n, acc, bias, factor)), 0, 255)
        e.store(e.as_bytes(value), e.at(out, n))


def _emit_add(builder: ir.IRBuilder, acc: Any, bias: Any, factor: Any, x: Any) -> None:
    e = Emitter(builder)
    for n in range(0, GROUP, LANES):
        before = e.load(e.at(x, 4 * n), vector(F32, LANES))
        e.store(builder.fadd(before, _result(e, n, acc, bias, factor)), e.at(x, 4 * n))


def _emit_put(builder: ir.IRBuilder, acc: Any, bias: Any, factor: Any, x: Any) -> None:
    e = Emitter(builder)
    for n in range(0, GROUP, LANES):
        e.store(_result(e, n, acc, bias, factor), e.at(x, 4 * n))


def _emit_colour(
    builder: ir.IRBuilder, acc: Any, bias: Any, factor: Any, std: Any, mean: Any, out: Any
) -> None:  # fmt: skip
    e = Emitter(builder)
    spread, middle = (e.broadcast(e.load(address, F32), LANES) for address in (std, mean))
    for n in range(0, GROUP, LANES):
        value = builder.fadd(builder.fmul(_result(e, n, acc, bias, factor), spread), middle)
        e.store(e.as_bytes(e.limited(e.rounded(value), 0, 255)), e.at(out, n))


def _emit_interleave(builder: ir.IRBuilder, planes: Any, out: Any, stride: Any) -> None:
    e, eight = Emitter(builder), vector(I8, 8)
    for row in range(8):
        red, green, blue = (e.load(e.at(planes, GROUP * colour + 8 * row), eight) for colour in range(3))
        sixteen = ir.Constant(vector(I32, 16), [ir.Constant(I32, n) for n in range(16)])
        pair = builder.shuffle_vector(red, green, sixteen)
        padded = builder.shuffle_vector(blue, blue, sixteen)
        order = [source for n in range(8) for source in (n, 8 + n, 16 + n)]
        mask = ir.Constant(vector(I32, 24), [ir.Constant(I32, n) for n in order])
        e.store(
            builder.shuffle_vector(pair, padded, mask), builder.add(out, builder.mul(stride, ir.Constant(I64, row)))
        )


def _emit_stream_bytes(builder: ir.IRBuilder, x: Any, unit: Any, out: Any) -> Any:
    e, flags, any_beyond = Emitter(builder), vector(ir.IntType(1), LANES), None
    for n in range(0, GROUP, LANES):
        kind = vector(F32, LANES)
        whole = e.rounded(builder.fmul(e.load(e.at(x, 4 * n), kind), e.load(e.at(unit, 4 * n), kind)))
        byte = e.limited(whole, -128, 127)
        e.store(e.as_bytes(byte, 128), e.at(out, n))
        beyond = builder.fcmp_ordered("!=", whole, byte)
        any_beyond = beyond if any_beyond is None else builder.or_(any_beyond, beyond)
    assert any_beyond is not None and any_beyond.type == flags
    return builder.zext(builder.bitcast(any_beyond, ir.IntType(LANES)), I64)


def _emit_fine_bytes(builder: ir.IRBuilder, values: Any, parts: Any, wholes: Any) -> None:
    e = Emitter(builder)
    value = e.load(values, vector(F32, LANES))
    whole = e.limited(e.rounded(value), -1024, 1023)
    rest = builder.fmul(builder.fsub(value, whole), splat(16, F32, LANES))
    e.store(e.as_bytes(e.limited(e.rounded(rest), -128, 127), 128), parts)
    e.store(e.as_bytes(e.rounded(builder.fmul(whole, splat(1 / 16, F32, LANES))), 128), wholes)


def _emit_combine(builder: ir.IRBuilder, acc: Any, low: Any, high: Any, sums: Any) -> None:
    e, kind = Emitter(builder), vector(I32, LANES)
    for n in range(0, GROUP, LANES):
        eightfold = builder.shl(e.load(e.at(high, 4 * n), kind), splat(3, I32, LANES))
        rest = builder.sub(builder.add(e.load(e.at(low, 4 * n), kind), eightfold), e.load(e.at(sums, 4 * n), kind))
        e.store(builder.add(e.load(e.at(acc, 4 * n), kind), rest), e.at(acc, 4 * n))


def _emit_clear(builder: ir.IRBuilder, address: Any, size: Any) -> None:
    before, function = builder.block, builder.function
    loop, done = function.append_basic_block("clear.loop"), function.append_basic_block("clear.done")
    builder.branch(loop)
    builder.position_at_end(loop)
    n = builder.phi(I64)
    n.add_incoming(ir.Constant(I64, 0), before)
    Emitter(builder).store(splat(0, I8, 64), builder.add(address, n))
    n_next = builder.add(n, ir.Constant(I64, 64))
    n.add_incoming(n_next, loop)
    builder.cbranch(builder.icmp_signed("<", n_next, size), loop, done)
    builder.position_at_end(done)


def _emit_add_multiple(builder: ir.IRBuilder, acc: Any, weights: Any, value: Any) -> None:
    e, wide = Emitter(builder), vector(I32, LANES)
    narrow = builder.sext(builder.trunc(value, I16), I32)  # so that LLVM multiplies numbers of 16 bits
    factor = e.broadcast(narrow, LANES)
    for n in range(0, GROUP, LANES):
        weight = builder.sext(e.load(e.at(weights, 2 * n), vector(I16, LANES)), wide)
        e.store(builder.add(e.load(e.at(acc, 4 * n), wide), builder.mul(weight, factor)), e.at(acc, 4 * n))


add_multiple = _intrinsic("add_multiple", 3, _emit_add_multiple)  # acc += weights (64,) int16 · value, within 16 bits
clear = _intrinsic("clear", 2, _emit_clear)  # zeros, so many bytes, a multiple of 64 above 0
activate = _intrinsic("activate", 4, _emit_activate)  # acc, bias, factor → clip(round((acc + bias) · factor), 0, 255)
activate_up = _intrinsic("activate_up", 4, _emit_activate_up)  # the same, but halves are rounded up, not to even
add = _intrinsic("add", 4, _emit_add)  # acc, bias, factor → added to a stream, float32
put = _intrinsic("put", 4, _emit_put)  # the same, written over it
colour = _intrinsic("colour", 6, _emit_colour)  # acc, bias, factor, std, mean → grey values of one colour, uint8
interleave = _intrinsic("interleave", 3, _emit_interleave)  # (3, 8, 8) uint8 → 8 rows of 8 pixels, `stride` apart
combine = _intrinsic("combine", 4, _emit_combine)  # acc, low, high, sums → acc + low + 8 · high - sums
# 64 channels of a stream times their units → bytes, 128 too high; returns whether any is beyond a byte.
stream_bytes = _intrinsic("stream_bytes", 3, _emit_stream_bytes, types.int64)
# 16 fine channels of a stream → what rounding leaves, in sixteenths, and the rounded value in units of sixteen; bytes.
fine_bytes = _intrinsic("fine_bytes", 3, _emit_fine_bytes)
