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
LANES = 4  # whose symbols are read without asking whether there are words for them
SLOT_BITS, WORD_BITS, TABLE_BITS = 14, 16, 9  # as `histocodec.entropy` and `kernels.distributions` have them
TABLES = 1 << TABLE_BITS  # that a code can name


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
    cursors: Any, sums: Any, listed: Any,
) -> Any:  # fmt: skip
    e, function = Emitter(builder, "generic"), builder.function
    several, single, done = (function.append_basic_block(name) for name in ("several", "single", "done"))
    position_of, used_of = cursors, e.at(cursors, 24)
    begun = [first, e.load(position_of, I64), e.load(used_of, I64)]
    before, choice = builder.block, function.append_basic_block("choice")
    exits: list[tuple[Any, list[Any]]] = []  # to `done`: from which blocks, and with what
    latches: list[tuple[Any, list[Any]]] = [(before, begun)]  # likewise to `choice`

    def whole(number: int, kind: ir.IntType = I64) -> Any:
        return ir.Constant(kind, number)

    def symbol(at_hand: list[Any], lane: Any, *, sure: bool) -> list[Any]:
        """Reads one symbol, and gives what follows for the next; `sure` that there is a word."""
        n, position, used = at_hand
        here = builder.add(codes, e.times(n, 4))
        code, state = e.load(here, I32), e.load(lane, I32)
        table = builder.zext(builder.and_(code, whole(TABLES - 1, I32)), I64)
        row = builder.add(sums, e.times(table, 2 * SUMS))
        limit = e.load(e.at(builder.add(sums, e.times(table, 4)), 2 * SUMS * TABLES), I32)
        slot = builder.and_(state, whole((1 << SLOT_BITS) - 1, I32))
        reached = _reached(e, row, slot)
        most = builder.and_(limit, whole((1 << LOW_SHIFT) - 1, I32))
        regular = function.append_basic_block("regular")
        exits.append((builder.block, at_hand))
        builder.cbranch(builder.icmp_unsigned("<=", reached, most), regular, done)
        builder.position_at_end(regular)
        value = builder.add(builder.ashr(code, whole(TABLE_BITS, I32)), builder.ashr(limit, whole(LOW_SHIFT, I32)))
        value = builder.add(value, reached)
        end_of = builder.add(row, e.times(builder.zext(reached, I64), 2))
        start, end = (builder.zext(e.load(address, I16), I32) for address in (e.at(end_of, -2), end_of))
        rest = builder.mul(builder.sub(end, start), builder.lshr(state, whole(SLOT_BITS, I32)))
        rest = builder.add(rest, builder.sub(slot, start))
        short = builder.icmp_unsigned("<", rest, whole(1 << WORD_BITS, I32))
        if not sure:
            inside = builder.select(builder.icmp_signed("<", position, last), position, last)
        word = builder.zext(e.load(builder.add(data, position if sure else inside), I16), I32)
        refilled = builder.or_(builder.shl(rest, whole(WORD_BITS, I32)), word)
        e.store(builder.select(short, refilled, rest), lane)
        e.store(value, here)
        e.store(builder.trunc(n, I32), builder.add(listed, e.times(used, 4)))
        used = builder.add(used, builder.zext(builder.icmp_signed("!=", value, whole(0, I32)), I64))
        return [builder.add(n, whole(1)), builder.add(position, e.times(builder.zext(short, I64), 2)), used]

    def end(following: list[Any]) -> None:
        for blocks in (exits, latches):
            blocks.append((builder.block, following))
        builder.cbranch(builder.icmp_signed("<", following[0], count), choice, done)

    builder.branch(choice)
    builder.position_at_end(choice)
    phis = [builder.phi(I64) for _ in begun]
    n, position, used = phis
    number = builder.and_(builder.add(at, n), mask)
    lane = builder.add(states, e.times(number, 4))
    ahead = builder.icmp_signed("<=", builder.add(n, whole(LANES)), count)
    ahead = builder.and_(ahead, builder.icmp_signed("<=", builder.add(number, whole(LANES - 1)), mask))
    ahead = builder.and_(ahead, builder.icmp_signed("<=", builder.add(position, whole(2 * LANES - 2)), last))
    builder.cbranch(ahead, several, single)
    builder.position_at_end(several)
    following = [n, position, used]
    for m in range(LANES):
        following = symbol(following, e.at(lane, 4 * m), sure=True)
    end(following)
    builder.position_at_end(single)
    end(symbol([n, position, used], lane, sure=False))
    for m, phi in enumerate(phis):
        for block, values in latches:
            phi.add_incoming(values[m], block)
    builder.position_at_end(done)
    results = []
    for m in range(len(begun)):
        result = builder.phi(I64)
        for block, values in exits:
            result.add_incoming(values[m], block)
        results.append(result)
    e.store(results[1], position_of)
    e.store(results[2], used_of)
    return results[0]


def _emit_put_values(
    builder: ir.IRBuilder, values: Any, listed: Any, count: Any, lifted: Any, places: Any, places_apart: Any,
    latents: Any, seen: Any, out: Any, size: Any,
) -> Any:  # fmt: skip
    e = Emitter(builder, "generic")
    high = builder.add(out, builder.sub(size, ir.Constant(I64, 1)))  # where there is one byte, the next takes its place
    bits = e.times(size, 8)
    half = builder.shl(ir.Constant(I64, 1), builder.sub(bits, ir.Constant(I64, 1)))
    seen_places = builder.add(places, places_apart)
    out_places = builder.add(seen_places, places_apart)

    def one(n: Any, carried: Any) -> list[Any]:
        def of(numbers: Any) -> Any:
            return builder.sext(e.load(builder.add(numbers, e.times(cell, 4)), I32), I64)

        cell = builder.zext(e.load(builder.add(listed, e.times(n, 4)), I32), I64)
        value, to = of(values), of(out_places)
        limited = value
        for bound, predicate in ((-CLIP, "<"), (CLIP, ">")):
            limit = ir.Constant(I64, bound)
            limited = builder.select(builder.icmp_signed(predicate, limited, limit), limit, limited)
        e.store(builder.trunc(limited, I16), builder.add(latents, of(places)))
        e.store(e.load(e.at(builder.add(lifted, limited), CLIP), I8), builder.add(seen, of(seen_places)))
        e.store(builder.trunc(builder.ashr(value, ir.Constant(I64, 8)), I8), builder.add(high, to))
        e.store(builder.trunc(value, I8), builder.add(out, to))
        return [builder.or_(carried[0], builder.lshr(builder.add(value, half), bits))]

    (beyond,) = e.loop(count, one, [ir.Constant(I64, 0)])
    return beyond


# The symbols of `count` codes from the one with the number `first` on, each written over its code, as its value: the
# whole mean and the symbol. `at` is the number of the first code in its segment, `mask` the number of lanes less one,
# `last` the last place in `data` with a byte after it, `cursors` (4,) int64 the next word, the end of the escapes, a
# number of others, and how many values that are not 0 were listed, int32. `sums` are the look-ups of TABLES tables,
# then their limits, int32. It gives the number of the first code whose symbol they do not have, which others must read.
# Words may be read beyond where they end: look at the cursors.
read_symbols = native("read_symbols", 11, _emit_read_symbols, returns=True)
# Writes `count` of the values, those of the `listed` cells: limited to ±CLIP, as an int16 to `latents` and as a byte,
# which the row `lifted` (2 · CLIP + 1,) has for it, to `seen`; in full to `out`, with `size` bytes, 1 or 2. How many
# bytes from there say the rows of `places` (3, cells) int32, which are `places_apart` bytes apart. It gives 0 where
# all have so many bytes.
put_values = native("put_values", 10, _emit_put_values, returns=True)
