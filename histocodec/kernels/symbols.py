"""Symbols of a rANS stream, as intrinsics of numba. The stream is that of `histocodec.entropy.rans`.

A *look-up* is a table's running sums of frequencies as one row of 32 numbers of 16 bits: the symbol of a slot is how
many of them the slot reaches, so that no branch depends on it. Tables of more symbols, and escapes, are left to others.
"""

from typing import Any

from llvmlite import ir

from histocodec.kernels.instructions import I8, I16, I32, I64, external, vector
from histocodec.kernels.intrinsics import native
from histocodec.kernels.processor import features
from histocodec.kernels.vectors import Emitter

SUMS = 32  # of a look-up: 0, then the sum after each symbol, then BEYOND
BEYOND = (1 << 15) - 1  # above every slot
MOST = SUMS - 1  # symbols of a look-up, besides ESCAPE
CLIP = 1023  # the largest magnitude that has a byte of its own
LOW_SHIFT = 8  # of a table's limits: 256 · (its lowest symbol - 1) + the number of symbols that the look-up gives
SLOT_BITS, WORD_BITS, TABLE_BITS = 14, 16, 9  # as `histocodec.entropy` and `kernels.distributions` have them


def _reached(e: Emitter, row: Any, slot: Any) -> Any:
    """How many of the sums at the address `row` are not above `slot`, an int32."""
    builder, kind = e.builder, vector(I16, SUMS)
    above = builder.icmp_signed("<=", e.load(row, kind), e.broadcast(builder.trunc(slot, I16), SUMS))
    if "popcnt" in features():
        count = external(builder, ir.FunctionType(I32, [I32]), "llvm.ctpop.i32")
        return builder.call(count, [builder.bitcast(above, I32)])
    added = external(builder, ir.FunctionType(I8, [vector(I8, SUMS)]), f"llvm.vector.reduce.add.v{SUMS}i8")
    return builder.zext(builder.call(added, [builder.zext(above, vector(I8, SUMS))]), I32)


def _emit_read_symbols(
    builder: ir.IRBuilder, codes: Any, first: Any, count: Any, at: Any, mask: Any, states: Any, data: Any, last: Any,
    cursors: Any, sums: Any, limits: Any, listed: Any,
) -> Any:  # fmt: skip
    e = Emitter(builder, "generic")

    def whole(number: int, kind: ir.IntType = I64) -> Any:
        return ir.Constant(kind, number)

    function, before = builder.function, builder.block
    inside, regular, done = (function.append_basic_block(name) for name in ("symbol", "regular", "done"))
    position_of, count_of = cursors, e.at(cursors, 24)
    position_before, listed_before = e.load(position_of, I64), e.load(count_of, I64)
    builder.branch(inside)

    builder.position_at_end(inside)
    n, position, used = builder.phi(I64), builder.phi(I64), builder.phi(I64)
    here = builder.add(codes, e.times(n, 4))
    code = e.load(here, I32)
    table = builder.zext(builder.and_(code, whole((1 << TABLE_BITS) - 1, I32)), I64)
    row, limit = builder.add(sums, e.times(table, 2 * SUMS)), e.load(builder.add(limits, e.times(table, 4)), I32)
    lane = builder.add(states, e.times(builder.and_(builder.add(at, n), mask), 4))
    state = e.load(lane, I32)
    slot = builder.and_(state, whole((1 << SLOT_BITS) - 1, I32))
    reached = _reached(e, row, slot)
    most = builder.and_(limit, whole((1 << LOW_SHIFT) - 1, I32))
    builder.cbranch(builder.icmp_unsigned("<=", reached, most), regular, done)

    builder.position_at_end(regular)
    value = builder.add(builder.ashr(code, whole(TABLE_BITS, I32)), builder.ashr(limit, whole(LOW_SHIFT, I32)))
    value = builder.add(value, reached)
    end_of = builder.add(row, e.times(builder.zext(reached, I64), 2))
    start, end = (builder.zext(e.load(address, I16), I32) for address in (e.at(end_of, -2), end_of))
    rest = builder.mul(builder.sub(end, start), builder.lshr(state, whole(SLOT_BITS, I32)))
    rest = builder.add(rest, builder.sub(slot, start))
    short = builder.icmp_unsigned("<", rest, whole(1 << WORD_BITS, I32))
    inner = builder.select(builder.icmp_signed("<", position, last), position, last)
    word = builder.zext(e.load(builder.add(data, inner), I16), I32)
    refilled = builder.or_(builder.shl(rest, whole(WORD_BITS, I32)), word)
    e.store(builder.select(short, refilled, rest), lane)
    position_after = builder.add(position, e.times(builder.zext(short, I64), 2))
    e.store(value, here)
    e.store(builder.trunc(n, I32), builder.add(listed, e.times(used, 4)))
    used_after = builder.add(used, builder.zext(builder.icmp_signed("!=", value, whole(0, I32)), I64))
    following = builder.add(n, whole(1))
    for phi, begun, later in (
        (n, first, following),
        (position, position_before, position_after),
        (used, listed_before, used_after),
    ):
        phi.add_incoming(begun, before)
        phi.add_incoming(later, regular)
    builder.cbranch(builder.icmp_signed("<", following, count), inside, done)

    builder.position_at_end(done)
    results = []
    for left, later in ((n, following), (position, position_after), (used, used_after)):
        result = builder.phi(I64)
        result.add_incoming(left, inside)
        result.add_incoming(later, regular)
        results.append(result)
    e.store(results[1], position_of)
    e.store(results[2], count_of)
    return results[0]


def _emit_put_values(
    builder: ir.IRBuilder, values: Any, listed: Any, count: Any, lifted: Any, latents: Any, latents_at: Any, seen: Any,
    seen_at: Any,
) -> Any:  # fmt: skip
    e = Emitter(builder, "generic")

    def one(n: Any, carried: Any) -> list[Any]:
        def of(numbers: Any) -> Any:
            return builder.sext(e.load(builder.add(numbers, e.times(cell, 4)), I32), I64)

        cell = builder.zext(e.load(builder.add(listed, e.times(n, 4)), I32), I64)
        value = of(values)
        e.store(builder.trunc(value, I16), builder.add(latents, of(latents_at)))
        limited = value
        for bound, predicate in ((-CLIP, "<"), (CLIP, ">")):
            limit = ir.Constant(I64, bound)
            limited = builder.select(builder.icmp_signed(predicate, limited, limit), limit, limited)
        e.store(e.load(e.at(builder.add(lifted, limited), CLIP), I8), builder.add(seen, of(seen_at)))
        raised = builder.add(value, ir.Constant(I64, 1 << 15))
        return [builder.or_(carried[0], builder.lshr(raised, ir.Constant(I64, 16)))]

    (beyond,) = e.loop(count, one, [ir.Constant(I64, 0)])
    return beyond


# The symbols of `count` codes from the one with the number `first` on, each written over its code, as its value: the
# whole mean and the symbol. `at` is the number of the first code in its segment, `mask` the number of lanes less one,
# `last` the last place in `data` with a byte after it, `cursors` (4,) int64 the next word, the end of the escapes, a
# number of others, and how many values that are not 0 were listed, int32. It gives the number of the first code whose
# symbol the look-ups do not have, which others must read. Words may be read beyond where they end: look at the cursors.
read_symbols = native("read_symbols", 12, _emit_read_symbols, returns=True)
# Writes `count` of the values, those of the `listed` cells: each as an int16 to `latents`, and as a byte, which the row
# `lifted` (2 · CLIP + 1,) has for it, to `seen`; as many bytes from there as (cells,) int32 say. It gives 0 where all
# are int16.
put_values = native("put_values", 8, _emit_put_values, returns=True)
