"""What the intrinsics of this package share: memory by address, and arithmetic on whole vectors, as LLVM's code."""

from typing import Any

from llvmlite import ir

from histocodec.kernels.instructions import F32, I8, I16, I32, I64, external, splat, vector

LANES = 16  # of what is no product: LLVM cuts these vectors up where registers are shorter


class Emitter:
    """Writes code at the place where `builder` stands. Addresses are 64-bit integers."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def at(self, address: Any, offset: int) -> Any:
        """An address that lies `offset` bytes further."""
        return self.builder.add(address, ir.Constant(I64, offset)) if offset else address

    def load(self, address: Any, kind: ir.Type) -> Any:
        """What lies at an address, which need not be aligned."""
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value: Any, address: Any) -> None:
        """Puts a value at an address, which need not be aligned."""
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=1)

    def broadcast(self, value: Any, lanes: int) -> Any:
        """A vector with the value in every lane."""
        undefined = ir.Constant(vector(value.type, lanes), ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(one, undefined, splat(0, I32, lanes))

    def rounded(self, x: Any) -> Any:
        """float32 rounded to the nearest integer, ties to even, still float32."""
        name = f"llvm.rint.v{x.type.count}f32"
        function = external(self.builder, ir.FunctionType(x.type, [x.type]), name)
        return self.builder.call(function, [x])

    def rounded_up(self, x: Any) -> Any:
        """float32 rounded to the nearest integer, halves up: floor(x + 1/2)."""
        function = external(self.builder, ir.FunctionType(x.type, [x.type]), f"llvm.floor.v{x.type.count}f32")
        return self.builder.call(function, [self.builder.fadd(x, splat(0.5, F32, x.type.count))])

    def limited(self, x: Any, low: float, high: float) -> Any:
        """float32 limited to low … high; the numbers are no NaN."""
        lanes = x.type.count
        for limit, below in ((low, True), (high, False)):
            bound = splat(limit, F32, lanes)
            x = self.builder.select(self.builder.fcmp_ordered("<" if below else ">", x, bound), bound, x)
        return x

    def as_bytes(self, x: Any, offset: int = 0) -> Any:
        """Integers in float32, which with `offset` are 0 … 255, as bytes."""
        lanes = x.type.count
        whole = self.builder.fptosi(x, vector(I32, lanes))
        if offset:
            whole = self.builder.add(whole, splat(offset, I32, lanes))
        return self.builder.trunc(whole, vector(I8, lanes))

    def scaled(self, total: Any, bias: Any, factor: Any) -> Any:
        """(total + bias) · factor: int32 to float32"""
        summed = self.builder.add(total, bias)
        return self.builder.fmul(self.builder.sitofp(summed, vector(F32, total.type.count)), factor)


__all__ = ["F32", "I8", "I16", "I32", "I64", "LANES", "Emitter", "splat", "vector"]
