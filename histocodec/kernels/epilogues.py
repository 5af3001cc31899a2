"""What goes before and after the products of bytes, as intrinsics of numba: sums to activations, streams and colours,
and streams to bytes. Each works on 64 channels of `count` positions, at least one.

Three widths of each are there, of 16, 8 and 4 lanes: `finish` and its like choose.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from histocodec.kernels.instructions import AVX2, AVX512_VNNI, F32, available, external
from histocodec.kernels.intrinsics import Intrinsic, native
from histocodec.kernels.jit import jit
from histocodec.kernels.vectors import GROUP, I1, I8, I32, I64, Emitter, splat, vector

ACTIVATE, ACTIVATE_UP, ADD, PUT, COLOUR = range(5)  # what follows the products
SUMS = 4 * GROUP  # bytes of one position's
ENTRY_BITS, WIDE = 6, 1024  # as `histocodec.models.transforms.integer` has them

Emit = Callable[..., Any]


def widths(name: str, arguments: int, emit: Emit, *, returns: bool = False) -> tuple[Intrinsic, Intrinsic, Intrinsic]:
    """The intrinsic that `emit(emitter, *arguments)` writes, of 16, 8 and 4 lanes."""

    def of(instructions: str) -> Intrinsic:
        def emit_with(builder: ir.IRBuilder, *args: Any) -> Any:
            return emit(Emitter(builder, instructions), *args)

        return native(f"{name}_{instructions}", arguments, emit_with, returns=returns)

    return of("avx512-vnni"), of("avx2"), of("generic")


def _row(e: Emitter, address: Any, kind: ir.Type) -> list[Any]:
    """64 numbers of 32 bits, as vectors."""
    return [e.load(e.at(address, 4 * n), kind) for n in range(0, GROUP, e.lanes)]


def _put_bytes(e: Emitter, vectors: list[Any], out: Any) -> None:
    """Stores 64 integers, limited to 0 … 255."""
    for n in range(0, len(vectors), 4):
        e.store(e.natural(e.unsigned_bytes(vectors[n : n + 4])), e.at(out, n * e.lanes))


def _emit_activate(e: Emitter, acc: Any, factor: Any, out: Any, stride: Any, count: Any) -> None:
    factors = _row(e, factor, e.floats)

    def position(m: Any, _: Any) -> list[Any]:
        sums = _row(e, e.builder.add(acc, e.times(m, SUMS)), e.integers)
        whole = [e.as_integers(e.scaled(total, each)) for total, each in zip(sums, factors, strict=True)]
        _put_bytes(e, whole, e.builder.add(out, e.builder.mul(m, stride)))
        return []

    e.loop(count, position)


def _emit_activate_up(e: Emitter, acc: Any, shift: Any, out: Any, stride: Any, count: Any) -> None:
    by = e.broadcast(e.builder.trunc(shift, I32))

    def position(m: Any, _: Any) -> list[Any]:
        sums = _row(e, e.builder.add(acc, e.times(m, SUMS)), e.integers)
        shifted = [e.builder.ashr(total, by) for total in sums]
        _put_bytes(e, shifted, e.builder.add(out, e.builder.mul(m, stride)))
        return []

    e.loop(count, position)


def _emit_stream(e: Emitter, acc: Any, factor: Any, x: Any, stride: Any, count: Any, *, add: bool) -> None:
    factors, exact = _row(e, factor, e.floats), ("contract",)

    def position(m: Any, _: Any) -> list[Any]:
        sums = _row(e, e.builder.add(acc, e.times(m, SUMS)), e.integers)
        at = e.builder.add(x, e.builder.mul(m, stride))
        for n, (total, each) in enumerate(zip(sums, factors, strict=True)):
            to = e.at(at, 4 * e.lanes * n)
            value = e.builder.fmul(e.as_floats(total), each, flags=exact)  # so is the sum: one instruction may do both
            if add:
                value = e.builder.fadd(e.load(to, e.floats), value, flags=exact)
            e.store(value, to)
        return []

    e.loop(count, position)


def _emit_add(e: Emitter, acc: Any, factor: Any, x: Any, stride: Any, count: Any) -> None:
    _emit_stream(e, acc, factor, x, stride, count, add=True)


def _emit_put(e: Emitter, acc: Any, factor: Any, x: Any, stride: Any, count: Any) -> None:
    _emit_stream(e, acc, factor, x, stride, count, add=False)


def _emit_colour(
    e: Emitter, acc: Any, factor: Any, out: Any, stride: Any, count: Any, std: Any, mean: Any
) -> None:  # fmt: skip
    factors = _row(e, factor, e.floats)
    spread, middle = (e.broadcast(e.load(address, F32)) for address in (std, mean))

    def position(m: Any, _: Any) -> list[Any]:
        sums = _row(e, e.builder.add(acc, e.times(m, SUMS)), e.integers)
        grey = []
        for total, each in zip(sums, factors, strict=True):
            value = e.builder.fadd(e.builder.fmul(e.scaled(total, each), spread), middle)
            grey.append(e.as_integers(e.at_least(e.at_most(value, 255), 0)))
        _put_bytes(e, grey, e.builder.add(out, e.builder.mul(m, stride)))
        return []

    e.loop(count, position)


def _emit_combine(e: Emitter, acc: Any, low: Any, high: Any, sums: Any, count: Any) -> None:
    builder, excess = e.builder, _row(e, sums, e.integers)

    def position(m: Any, _: Any) -> list[Any]:
        at = e.times(m, SUMS)
        rows = [_row(e, builder.add(part, at), e.integers) for part in (acc, low, high)]
        for n, (a, b, c) in enumerate(zip(*rows, strict=True)):
            eightfold = builder.shl(c, splat(3, I32, e.lanes))
            rest = builder.sub(builder.add(b, eightfold), excess[n])
            e.store(builder.add(a, rest), e.at(builder.add(acc, at), 4 * e.lanes * n))
        return []

    e.loop(count, position)


def _emit_stream_bytes(e: Emitter, x: Any, out: Any, count: Any) -> None:
    def position(m: Any, _: Any) -> list[Any]:
        whole = [e.as_integers(v) for v in _row(e, e.builder.add(x, e.times(m, SUMS)), e.floats)]
        for n in range(0, len(whole), 4):
            packed = e.signed_bytes([e.words(*whole[n : n + 2]), e.words(*whole[n + 2 : n + 4])])
            e.store(e.natural(packed), e.at(e.builder.add(out, e.times(m, GROUP)), n * e.lanes))
        return []

    e.loop(count, position)


def _emit_wide_bytes(e: Emitter, x: Any, stride: Any, unit: Any, out: Any, out_stride: Any, count: Any) -> Any:
    builder, units, kind = e.builder, _row(e, unit, e.floats), vector(ir.IntType(16), 2 * e.lanes)

    def position(m: Any, beyond: Any) -> list[Any]:
        values = _row(e, builder.add(x, builder.mul(m, stride)), e.floats)
        whole = [e.as_integers(builder.fmul(v, each)) for v, each in zip(values, units, strict=True)]
        words = [e.words(*whole[n : n + 2]) for n in range(0, len(whole), 2)]
        (seen,) = beyond
        for word in words:  # a number is a byte where it has the same sign as all of its bits from the seventh on
            seen = builder.or_(seen, builder.xor(word, builder.ashr(word, splat(15, ir.IntType(16), 2 * e.lanes))))
        for n in range(0, len(words), 2):
            packed = e.natural(e.signed_bytes(words[n : n + 2]))
            e.store(packed, e.at(builder.add(out, builder.mul(m, out_stride)), 2 * n * e.lanes))
        return [seen]

    (seen,) = e.loop(count, position, [ir.Constant(kind, None)])
    high = builder.icmp_unsigned(">", seen, splat(127, ir.IntType(16), 2 * e.lanes))
    flags = builder.bitcast(high, ir.IntType(2 * e.lanes))
    return builder.zext(builder.icmp_unsigned("!=", flags, ir.Constant(flags.type, 0)), I64)


def _emit_fine_bytes(
    e: Emitter, x: Any, stride: Any, index: Any, factor: Any, parts: Any, room: Any, out_stride: Any, count: Any
) -> None:  # fmt: skip
    builder, sixteen = e.builder, range(0, 16, e.lanes)
    numbers = [e.load(e.at(index, 4 * n), e.integers) for n in sixteen]
    factors = [e.load(e.at(factor, 4 * n), e.floats) for n in sixteen]
    lanes = [ir.Constant(I32, n) for n in range(e.lanes)]
    single = [builder.zext(builder.extract_element(v, lane), I64) for v in numbers for lane in lanes]

    def gathered(at: Any, n: int) -> Any:
        if e.lanes == 16 and available(e.name):
            none, all_lanes = ir.Constant(e.floats, ir.Undefined), splat(1, I1, 16)
            pointer = I8.as_pointer()
            kind = ir.FunctionType(e.floats, [e.floats, pointer, e.integers, all_lanes.type, I32])
            function = external(builder, kind, "llvm.x86.avx512.mask.gather.dps.512")
            arguments = [none, builder.inttoptr(at, pointer), numbers[n], all_lanes, ir.Constant(I32, 4)]
            return builder.call(function, arguments)
        values = ir.Constant(e.floats, ir.Undefined)
        for lane in range(e.lanes):
            value = e.load(builder.add(at, e.times(single[n * e.lanes + lane], 4)), F32)
            values = builder.insert_element(values, value, ir.Constant(I32, lane))
        return values

    def position(m: Any, _: Any) -> list[Any]:
        at, to = builder.add(x, builder.mul(m, stride)), builder.add(parts, builder.mul(m, out_stride))
        for n, first in enumerate(sixteen):
            value = builder.fmul(gathered(at, n), factors[n])
            whole = e.at_least(e.at_most(e.rounded(value), 1023), -1024)
            rest = builder.fmul(builder.fsub(value, whole), splat(16, F32, e.lanes))
            rest = e.at_least(e.at_most(rest, 127), -128)
            shares = builder.fmul(whole, splat(1 / 16, F32, e.lanes))
            for each, offset in ((rest, 0), (shares, None)):
                raised = builder.add(e.as_integers(each), splat(128, I32, e.lanes))
                address = e.at(to if offset == 0 else builder.add(to, room), first)
                e.store(builder.trunc(raised, vector(I8, e.lanes)), address)
        return []

    e.loop(count, position)


def _emit_enter(
    e: Emitter, latents: Any, stride: Any, scale: Any, x: Any, x_stride: Any, count: Any
) -> None:  # fmt: skip
    builder, scales = e.builder, _row(e, scale, e.floats)
    unit, share = splat(1 << ENTRY_BITS, F32, e.lanes), splat(1 / (1 << ENTRY_BITS), F32, e.lanes)

    def position(m: Any, _: Any) -> list[Any]:
        values = _row(e, builder.add(latents, builder.mul(m, stride)), e.floats)
        for n, (value, each) in enumerate(zip(values, scales, strict=True)):
            parts = e.rounded(builder.fmul(builder.fmul(value, each), unit))
            limited = e.at_least(e.at_most(builder.fmul(parts, share), WIDE), -WIDE)
            e.store(limited, e.at(builder.add(x, builder.mul(m, x_stride)), 4 * e.lanes * n))
        return []

    e.loop(count, position)


_ACTIVATE = widths("activate", 5, _emit_activate)
_ACTIVATE_UP = widths("activate_up", 5, _emit_activate_up)
_ADD = widths("add", 5, _emit_add)
_PUT = widths("put", 5, _emit_put)
_COLOUR = widths("colour", 7, _emit_colour)
_COMBINE = widths("combine", 5, _emit_combine)
_STREAM_BYTES = widths("stream_bytes", 3, _emit_stream_bytes)
_WIDE_BYTES = widths("wide_bytes", 6, _emit_wide_bytes, returns=True)
_FINE_BYTES = widths("fine_bytes", 8, _emit_fine_bytes)
_ENTER = widths("enter", 6, _emit_enter)

activate_512, activate_256, activate_128 = _ACTIVATE
activate_up_512, activate_up_256, activate_up_128 = _ACTIVATE_UP
add_512, add_256, add_128 = _ADD
put_512, put_256, put_128 = _PUT
colour_512, colour_256, colour_128 = _COLOUR
combine_512, combine_256, combine_128 = _COMBINE
stream_bytes_512, stream_bytes_256, stream_bytes_128 = _STREAM_BYTES
wide_bytes_512, wide_bytes_256, wide_bytes_128 = _WIDE_BYTES
fine_bytes_512, fine_bytes_256, fine_bytes_128 = _FINE_BYTES
enter_512, enter_256, enter_128 = _ENTER


@jit
def finish(
    instructions: int, then: int, acc: int, factor: int, out: int, stride: int, count: int, std: int, mean: int
) -> None:
    """What follows the products, `then`, for 64 outputs of `count` positions, from their sums `acc`:

    ACTIVATE      clip(round(acc · factor), 0, 255), uint8
    ACTIVATE_UP   the same by a shift, `factor`; halves up, where acc has the half in it
    ADD, PUT      acc · factor, added to a stream or written over it, float32
    COLOUR        grey values of one colour, uint8
    """
    if instructions <= AVX512_VNNI:
        if then == ACTIVATE:
            activate_512(acc, factor, out, stride, count)
        elif then == ACTIVATE_UP:
            activate_up_512(acc, factor, out, stride, count)
        elif then == ADD:
            add_512(acc, factor, out, stride, count)
        elif then == PUT:
            put_512(acc, factor, out, stride, count)
        else:
            colour_512(acc, factor, out, stride, count, std, mean)
    elif instructions <= AVX2:
        if then == ACTIVATE:
            activate_256(acc, factor, out, stride, count)
        elif then == ACTIVATE_UP:
            activate_up_256(acc, factor, out, stride, count)
        elif then == ADD:
            add_256(acc, factor, out, stride, count)
        elif then == PUT:
            put_256(acc, factor, out, stride, count)
        else:
            colour_256(acc, factor, out, stride, count, std, mean)
    elif then == ACTIVATE:
        activate_128(acc, factor, out, stride, count)
    elif then == ACTIVATE_UP:
        activate_up_128(acc, factor, out, stride, count)
    elif then == ADD:
        add_128(acc, factor, out, stride, count)
    elif then == PUT:
        put_128(acc, factor, out, stride, count)
    else:
        colour_128(acc, factor, out, stride, count, std, mean)


@jit
def combine(instructions: int, acc: int, low: int, high: int, sums: int, count: int) -> None:
    """acc += low + 8 · high - sums, for 64 outputs of `count` positions."""
    if instructions <= AVX512_VNNI:
        combine_512(acc, low, high, sums, count)
    elif instructions <= AVX2:
        combine_256(acc, low, high, sums, count)
    else:
        combine_128(acc, low, high, sums, count)


@jit
def stream_bytes(instructions: int, x: int, out: int, count: int) -> None:
    """`count` × 64 numbers of a stream, which follow each other → bytes, 128 too high."""
    if instructions <= AVX512_VNNI:
        stream_bytes_512(x, out, count)
    elif instructions <= AVX2:
        stream_bytes_256(x, out, count)
    else:
        stream_bytes_128(x, out, count)


@jit
def wide_bytes(instructions: int, x: int, stride: int, unit: int, out: int, out_stride: int, count: int) -> Any:
    """64 channels of a stream times their units → bytes, 128 too high; not 0 where any is beyond a byte."""
    if instructions <= AVX512_VNNI:
        return wide_bytes_512(x, stride, unit, out, out_stride, count)
    if instructions <= AVX2:
        return wide_bytes_256(x, stride, unit, out, out_stride, count)
    return wide_bytes_128(x, stride, unit, out, out_stride, count)


@jit
def fine_bytes(
    instructions: int, x: int, stride: int, index: int, factor: int, parts: int, room: int, out_stride: int, count: int
) -> None:
    """16 fine channels of a stream, whose numbers are at `index`, int32, times their factors → what rounding leaves,
    in sixteenths, and `room` bytes further the rounded value in units of sixteen; bytes, 128 too high."""
    if instructions <= AVX512_VNNI:
        fine_bytes_512(x, stride, index, factor, parts, room, out_stride, count)
    elif instructions <= AVX2:
        fine_bytes_256(x, stride, index, factor, parts, room, out_stride, count)
    else:
        fine_bytes_128(x, stride, index, factor, parts, room, out_stride, count)


@jit
def enter(instructions: int, latents: int, stride: int, scale: int, x: int, x_stride: int, count: int) -> None:
    """64 channels of latents, gains undone, float32 → a stream: times `scale`, rounded to 1 / 64 and limited."""
    if instructions <= AVX512_VNNI:
        enter_512(latents, stride, scale, x, x_stride, count)
    elif instructions <= AVX2:
        enter_256(latents, stride, scale, x, x_stride, count)
    else:
        enter_128(latents, stride, scale, x, x_stride, count)
