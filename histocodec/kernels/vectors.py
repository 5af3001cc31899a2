"""What the intrinsics of this package share: functions in LLVM's code, memory by address, and arithmetic on vectors."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from histocodec.kernels.instructions import F32, I1, I8, I16, I32, I64, LANES, available, external, splat, vector

GROUP = 64  # channels


class Emitter:
    """Writes code of the instructions `name` at the place where `builder` stands. Addresses are 64-bit integers.

    Bytes are packed as x86 does it, four vectors of 32 bits to one of bytes: quarter by quarter of the vectors,
    unless `natural` puts them in order.
    """

    def __init__(self, builder: ir.IRBuilder, name: str) -> None:
        self.builder, self.name, self.lanes = builder, name, LANES[name]
        self.floats, self.integers = vector(F32, self.lanes), vector(I32, self.lanes)
        self._x86 = available(name) and self.lanes > 4

    def at(self, address: Any, offset: int) -> Any:
        """An address that lies `offset` bytes further."""
        return self.builder.add(address, ir.Constant(I64, offset)) if offset else address

    def times(self, number: Any, factor: int) -> Any:
        """A 64-bit integer, multiplied."""
        return self.builder.mul(number, ir.Constant(I64, factor))

    def load(self, address: Any, kind: ir.Type) -> Any:
        """What lies at an address, which need not be aligned."""
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value: Any, address: Any) -> None:
        """Puts a value at an address, which need not be aligned."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=1)

    def broadcast(self, value: Any, lanes: int | None = None) -> Any:
        """A vector with the value in every lane."""
        lanes = lanes or self.lanes
        undefined = ir.Constant(vector(value.type, lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, undefined, splat(0, I32, lanes))

    def loop(
        self, count: Any, body: Callable[[Any, Sequence[Any]], Sequence[Any]], carried: Sequence[Any] = ()
    ) -> Sequence[Any]:
        """Code for n = 0 … count - 1, at least once: `body(n, values)` gives the next values that are carried on.
        Returns the last ones."""
        builder = self.builder
        before, function = builder.block, builder.function
        inside, done = function.append_basic_block("loop"), function.append_basic_block("done")
        builder.branch(inside)
        builder.position_at_end(inside)
        n, values = builder.phi(I64), [builder.phi(value.type) for value in carried]
        results = body(n, values)
        following, end = builder.add(n, ir.Constant(I64, 1)), builder.block
        for phi, first, later in zip([n, *values], [ir.Constant(I64, 0), *carried], [following, *results], strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(later, end)
        builder.cbranch(builder.icmp_signed("<", following, count), inside, done)
        builder.position_at_end(done)
        return results

    # Arithmetic on one vector.

    def as_floats(self, x: Any) -> Any:
        """int32 to float32"""
        return self.builder.sitofp(x, self.floats)

    def as_integers(self, x: Any) -> Any:
        """float32 to int32, rounded to the nearest integer, ties to even; the result must fit."""
        if self._x86 and self.lanes == 16:
            kind = ir.FunctionType(self.integers, [self.floats, self.integers, I16, I32])
            function = external(self.builder, kind, "llvm.x86.avx512.mask.cvtps2dq.512")
            none, all_lanes = ir.Constant(self.integers, ir.Undefined), ir.Constant(I16, -1)
            return self.builder.call(function, [x, none, all_lanes, ir.Constant(I32, 4)])  # 4: as is usual
        if self._x86:
            kind = ir.FunctionType(self.integers, [self.floats])
            return self.builder.call(external(self.builder, kind, "llvm.x86.avx.cvt.ps2dq.256"), [x])
        return self.builder.fptosi(self.rounded(x), self.integers)

    def rounded(self, x: Any) -> Any:
        """float32 rounded to the nearest integer, ties to even, still float32."""
        function = external(self.builder, ir.FunctionType(x.type, [x.type]), f"llvm.rint.v{x.type.count}f32")
        return self.builder.call(function, [x])

    def at_most(self, x: Any, high: float) -> Any:
        """float32 limited to `high`."""
        bound = splat(high, F32, x.type.count)
        return self.builder.select(self.builder.fcmp_ordered("<", x, bound), x, bound)

    def at_least(self, x: Any, low: float) -> Any:
        """float32 limited to `low`."""
        bound = splat(low, F32, x.type.count)
        return self.builder.select(self.builder.fcmp_ordered(">", x, bound), x, bound)

    def scaled(self, total: Any, factor: Any) -> Any:
        """total · factor: int32 to float32"""
        return self.builder.fmul(self.as_floats(total), factor)

    # Packing: limits come with it.

    def words(self, a: Any, b: Any) -> Any:
        """Two vectors of int32, limited to int16, as one."""
        return self._packed(a, b, I16, -(1 << 15), (1 << 15) - 1, "packssdw")

    def unsigned_bytes(self, vectors: Sequence[Any]) -> Any:
        """Four vectors of int32, limited to 0 … 255, as one of bytes."""
        a, b, c, d = vectors
        return self._packed(self.words(a, b), self.words(c, d), I8, 0, 255, "packuswb")

    def signed_bytes(self, words: Sequence[Any]) -> Any:
        """Two vectors of int16, limited to -128 … 127, as one of bytes, 128 too high."""
        packed = self._packed(words[0], words[1], I8, -128, 127, "packsswb")
        return self.builder.xor(packed, splat(-128, I8, packed.type.count))

    def natural(self, packed: Any) -> Any:
        """Packed bytes in the order of the four vectors."""
        quarters = self.lanes // 4
        if quarters == 1:
            return packed
        wide = vector(I32, self.lanes)
        order = ir.Constant(wide, [ir.Constant(I32, 4 * n + q) for q in range(4) for n in range(quarters)])
        as_wide = self.builder.bitcast(packed, wide)
        shuffled = self.builder.shuffle_vector(as_wide, ir.Constant(wide, ir.Undefined), order)
        return self.builder.bitcast(shuffled, packed.type)

    def _packed(self, a: Any, b: Any, to: ir.Type, low: int, high: int, instruction: str) -> Any:
        result, builder = vector(to, 2 * a.type.count), self.builder
        if self._x86:
            family = "avx512" if self.lanes == 16 else "avx2"
            name = f"llvm.x86.{family}.{instruction}" + (".512" if self.lanes == 16 else "")
            return builder.call(external(builder, ir.FunctionType(result, [a.type, a.type]), name), [a, b])
        element, count, quarter = a.type.element, a.type.count, a.type.count // (self.lanes // 4)
        limited = []
        for x in (a, b):
            for bound, predicate in ((low, "<"), (high, ">")):
                limit = splat(bound, element, count)
                x = builder.select(builder.icmp_signed(predicate, x, limit), limit, x)
            limited.append(builder.trunc(x, vector(to, count)))
        parts = range(0, count, quarter)
        order = [n for first in parts for half in (0, count) for n in range(half + first, half + first + quarter)]
        mask = ir.Constant(vector(I32, 2 * count), [ir.Constant(I32, n) for n in order])
        return builder.shuffle_vector(limited[0], limited[1], mask)


__all__ = ["F32", "GROUP", "I1", "I8", "I16", "I32", "I64", "Emitter", "splat", "vector"]
