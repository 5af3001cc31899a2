"""What the encoder's search has at the two ends of the synthesis, as intrinsics of numba: integers that enter, and
errors that leave. Each works on a row of positions, at least one, and has three widths, as `epilogues` have.
"""

from typing import Any

from llvmlite import ir

from histocodec.kernels.epilogues import ENTRY_BITS, WIDE, widths
from histocodec.kernels.instructions import AVX2, AVX512_VNNI, F32, I16, splat, vector
from histocodec.kernels.jit import jit
from histocodec.kernels.vectors import GROUP, Emitter

COLOURS, SUMS = 3, 16  # a position's squares are added up in 16 sums, whatever the width, so that all give the same


def _emit_enter_integers(
    e: Emitter, latents: Any, stride: Any, inverse_gain: Any, scale: Any, x: Any, x_stride: Any, count: Any
) -> None:  # fmt: skip
    builder, half, groups = e.builder, vector(I16, e.lanes), range(0, GROUP, e.lanes)
    gains, scales = ([e.load(e.at(row, 4 * n), e.floats) for n in groups] for row in (inverse_gain, scale))
    unit, share = splat(1 << ENTRY_BITS, F32, e.lanes), splat(1 / (1 << ENTRY_BITS), F32, e.lanes)

    def position(m: Any, _: Any) -> list[Any]:
        at, to = builder.add(latents, builder.mul(m, stride)), builder.add(x, builder.mul(m, x_stride))
        for n, gain, each in zip(groups, gains, scales, strict=True):
            value = e.as_floats(builder.sext(e.load(e.at(at, 2 * n), half), e.integers))
            parts = e.rounded(builder.fmul(builder.fmul(builder.fmul(value, gain), each), unit))
            e.store(e.at_least(e.at_most(builder.fmul(parts, share), WIDE), -WIDE), e.at(to, 4 * n))
        return []

    e.loop(count, position)


def _emit_squared_errors(
    e: Emitter, planes: Any, target: Any, mean: Any, std: Any, unit: Any, slopes: Any, squares: Any, count: Any
) -> None:  # fmt: skip
    builder, half, nothing = e.builder, vector(I16, e.lanes), ir.Constant(e.floats, None)
    spreads, middles = (
        [e.broadcast(e.load(e.at(row, 4 * colour), F32)) for colour in range(COLOURS)] for row in (std, mean)
    )
    doubled = [builder.fadd(spread, spread) for spread in spreads]

    def position(m: Any, _: Any) -> list[Any]:
        at, wanted_at = builder.add(planes, e.times(m, 4 * COLOURS * GROUP)), e.times(m, 2 * COLOURS * GROUP)
        wanted_at, slopes_at = builder.add(target, wanted_at), builder.add(slopes, e.times(m, COLOURS * GROUP))
        sums = [nothing] * (SUMS // e.lanes)
        for colour in range(COLOURS):
            bytes_of = []
            for n in range(GROUP // e.lanes):
                here = GROUP * colour + e.lanes * n
                wanted = builder.sext(e.load(e.at(wanted_at, 2 * here), half), e.integers)
                value = builder.fmul(e.load(e.at(at, 4 * here), e.floats), spreads[colour])
                off = builder.fsub(builder.fadd(value, middles[colour]), e.as_floats(wanted))
                there = builder.icmp_signed(">=", wanted, ir.Constant(e.integers, None))
                off = builder.select(there, off, nothing)
                which = n % len(sums)
                sums[which] = builder.fadd(sums[which], builder.fmul(off, off))
                units = e.load(e.at(unit, 4 * here), e.floats)
                bytes_of.append(e.as_integers(builder.fmul(builder.fmul(off, doubled[colour]), units)))
            for n in range(0, len(bytes_of), 4):
                packed = e.signed_bytes([e.words(*bytes_of[n : n + 2]), e.words(*bytes_of[n + 2 : n + 4])])
                e.store(e.natural(packed), e.at(slopes_at, GROUP * colour + e.lanes * n))
        for n, total in enumerate(sums):
            e.store(total, e.at(builder.add(squares, e.times(m, 4 * SUMS)), 4 * e.lanes * n))
        return []

    e.loop(count, position)


enter_integers_512, enter_integers_256, enter_integers_128 = widths("enter_integers", 7, _emit_enter_integers)
squared_errors_512, squared_errors_256, squared_errors_128 = widths("squared_errors", 8, _emit_squared_errors)


@jit
def enter_integers(
    instructions: int, latents: int, stride: int, inverse_gain: int, scale: int, x: int, x_stride: int, count: int
) -> None:
    """64 channels of latents, int16 → a stream, as `enter` makes it of latents whose gains are undone."""
    if instructions <= AVX512_VNNI:
        enter_integers_512(latents, stride, inverse_gain, scale, x, x_stride, count)
    elif instructions <= AVX2:
        enter_integers_256(latents, stride, inverse_gain, scale, x, x_stride, count)
    else:
        enter_integers_128(latents, stride, inverse_gain, scale, x, x_stride, count)


@jit
def squared_errors(
    instructions: int, planes: int, target: int, mean: int, std: int, unit: int, slopes: int, squares: int, count: int
) -> None:
    """Unshuffled pixels (count, 192) float32, normalised, and what they should be, int16, negative where there is no
    pixel → the squared errors in 16 sums for each position, (count, 16) float32, and the derivative of their sum times
    `unit` (192,), in bytes, 128 too high."""
    if instructions <= AVX512_VNNI:
        squared_errors_512(planes, target, mean, std, unit, slopes, squares, count)
    elif instructions <= AVX2:
        squared_errors_256(planes, target, mean, std, unit, slopes, squares, count)
    else:
        squared_errors_128(planes, target, mean, std, unit, slopes, squares, count)
