"""The function by which an object file is called, and what stands in it for numba's runtime, as LLVM's code.

It takes the address of int64s: room for the kernel's results, then its arguments. See `histocodec.kernels.compile`.
"""

import ctypes
import os
import re
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.runtime import nrtdynmod
from numba.np.arrayobj import populate_array

from histocodec.kernels.objects import SYMBOL, Result

HEADER_BYTES = 64  # before the arrays that a kernel allocates; numba's header has 40
I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER = I8.as_pointer()


def result_of(kind: Any) -> Result | None:
    """How a result is written; None for what only numba can return."""
    if isinstance(kind, types.NoneType):
        return "nothing"
    if isinstance(kind, types.Boolean):
        return "bool"
    if isinstance(kind, types.Integer):
        return "int"
    if isinstance(kind, types.Float):
        return "float"
    if isinstance(kind, types.BaseTuple):
        parts = [result_of(member) for member in kind]
        return parts if all(isinstance(part, str) and part != "nothing" for part in parts) else None
    return None


def define_entry(target: Any, module: ir.Module, described: Any) -> None:
    """The function that the object is called by."""
    entry = ir.Function(module, ir.FunctionType(I64, [I64]), SYMBOL)
    builder = ir.IRBuilder(entry.append_basic_block("entry"))
    memory = builder.inttoptr(entry.args[0], I64.as_pointer())
    returned, count = described.restype, 0
    results = list(returned) if isinstance(returned, types.BaseTuple) else [returned]
    if isinstance(returned, types.NoneType):
        results = []

    def place() -> Any:
        nonlocal count
        count += 1
        return builder.gep(memory, [ir.Constant(I64, count - 1)])

    rooms = [place() for _ in results]
    arguments = [_argument(target, builder, kind, lambda: builder.load(place())) for kind in described.argtypes]
    kernel = ir.Function(
        module, target.call_conv.get_function_type(returned, described.argtypes), described.llvm_func_name
    )
    status, value = target.call_conv.call_function(builder, kernel, returned, described.argtypes, arguments)
    with builder.if_then(status.is_error, likely=False):
        builder.ret(ir.Constant(I64, 1))
    parts = cgutils.unpack_tuple(builder, value) if isinstance(returned, types.BaseTuple) else [value]
    for kind, part, room in zip(results, parts, rooms, strict=False):
        builder.store(_as_integer(builder, kind, part), room)
    builder.ret(ir.Constant(I64, 0))


def _argument(target: Any, builder: ir.IRBuilder, kind: Any, take: Callable[[], Any]) -> Any:
    """An argument, made of the integers that `take` gives one after the other."""
    if isinstance(kind, types.BaseTuple):
        return target.make_tuple(builder, kind, [_argument(target, builder, member, take) for member in kind])
    if isinstance(kind, types.Array):
        made = target.make_array(kind)(target, builder)
        fields = builder.inttoptr(builder.add(take(), ir.Constant(I64, object.__basicsize__)), I64.as_pointer())

        def field(number: int) -> Any:
            return builder.load(builder.gep(fields, [ir.Constant(I64, number)]))

        def members(number: int) -> list[Any]:
            first = builder.inttoptr(field(number), I64.as_pointer())
            return [builder.load(builder.gep(first, [ir.Constant(I64, n)])) for n in range(kind.ndim)]

        data = builder.inttoptr(field(0), made.data.type)  # see `jit.arrays_lie_as_expected`
        shape = members(2)
        itemsize = target.get_abi_sizeof(target.get_data_type(kind.dtype))
        strides = [ir.Constant(I64, itemsize)]
        for size in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], size))
        if kind.layout != "C":
            strides = members(3)
        populate_array(made, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
        return made._getvalue()
    value, wanted = take(), target.get_value_type(kind)
    if isinstance(kind, types.Boolean):
        return builder.icmp_signed("!=", value, ir.Constant(I64, 0))
    if isinstance(kind, types.Float):
        if wanted == ir.FloatType():
            value = builder.trunc(value, I32)
        return builder.bitcast(value, wanted)
    return value if wanted == I64 else builder.trunc(value, wanted)


def _as_integer(builder: ir.IRBuilder, kind: Any, value: Any) -> Any:
    """A number as an int64: integers by value, floating-point numbers by the bits of a float64."""
    if isinstance(kind, types.Float):
        if value.type == ir.FloatType():
            value = builder.fpext(value, ir.DoubleType())
        return builder.bitcast(value, I64)
    if value.type == I64:
        return value
    signed = isinstance(kind, types.Integer) and kind.signed
    return (builder.sext if signed else builder.zext)(value, I64)


# Memory. numba's code counts references to arrays, and asks numba's runtime for those that a kernel allocates. These
# stand for it. Arrays that were passed have no header and are not counted.


def define_memory(module: ir.Module) -> None:
    """The functions of numba's runtime that kernels use, by means of the C library."""
    allocate = ir.Function(module, ir.FunctionType(POINTER, [I64]), "malloc")
    free = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), "free")
    header, nothing = nrtdynmod._meminfo_struct_type, ir.Constant(POINTER, None)

    def define(name: str, result: ir.Type, *arguments: ir.Type) -> tuple[ir.IRBuilder, Any]:
        function = ir.Function(module, ir.FunctionType(result, arguments), name)
        function.attributes.add("alwaysinline")
        return ir.IRBuilder(function.append_basic_block("entry")), function.args

    for name in ("NRT_MemInfo_alloc_aligned", "NRT_MemInfo_alloc_safe_aligned"):
        builder, (size, alignment) = define(name, POINTER, I64, I32)
        boundary, room = builder.zext(alignment, I64), ir.Constant(I64, HEADER_BYTES)
        memory = builder.call(allocate, [builder.add(builder.add(size, boundary), room)])
        with builder.if_then(builder.icmp_unsigned("==", memory, nothing), likely=False):
            builder.ret(nothing)
        first = builder.add(builder.ptrtoint(memory, I64), room)
        data = builder.sub(builder.add(first, boundary), builder.urem(first, boundary))
        fields = builder.bitcast(memory, header.as_pointer())
        for number, value in ((0, ir.Constant(I64, 1)), (3, builder.inttoptr(data, POINTER)), (4, size)):
            place = builder.gep(fields, [ir.Constant(I32, 0), ir.Constant(I32, number)])
            builder.store(value, place)
        builder.ret(memory)
    builder, (memory,) = define("NRT_MemInfo_data_fast", POINTER, POINTER)
    place = builder.gep(builder.bitcast(memory, header.as_pointer()), [ir.Constant(I32, 0), ir.Constant(I32, 3)])
    builder.ret(builder.load(place))
    for name, change in (("NRT_incref", 1), ("NRT_decref", -1)):
        builder, (memory,) = define(name, ir.VoidType(), POINTER)
        with builder.if_then(builder.icmp_unsigned("!=", memory, nothing)):
            counter = builder.bitcast(memory, I64.as_pointer())
            count = builder.add(builder.load(counter), ir.Constant(I64, change))
            builder.store(count, counter)
            if change < 0:
                with builder.if_then(builder.icmp_unsigned("==", count, ir.Constant(I64, 0))):
                    builder.call(free, [memory])
        builder.ret_void()


def refers_elsewhere(text: str) -> bool:
    """Whether LLVM's code calls what is neither in it nor in the C library: a function of numba's or Python's."""
    declared = re.findall(r"^declare [^\n]*?@\"?([\w.$]+)", text, re.MULTILINE)
    called = set(re.findall(r"@\"?([\w.$]+)", re.sub(r"^declare [^\n]*$", "", text, flags=re.MULTILINE)))
    library = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    external = (name for name in declared if name in called and not name.startswith("llvm."))
    return not all(hasattr(library, name) for name in external)
