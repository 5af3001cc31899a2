"""Compiling kernels with numba to object files that need neither numba nor Python.

Each object has one function, which takes the address of int64s: room for the kernel's results, then what
`jit.Kernel` lays out for its arguments. It returns 0, or something else where the kernel failed. It refers to nothing
but the C library, so it can be loaded on its own, at any address.

Kernels that call each other are compiled into one another: numba types a `Kernel` by `KernelType` and an `Intrinsic` as
its own intrinsics.
"""

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from inspect import Parameter, Signature
from typing import Any, Protocol

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, compiler, datamodel, event
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime import nrtdynmod, rtsys
from numba.extending import intrinsic, typeof_impl
from numba.np import numpy_support
from numba.np.arrayobj import populate_array

from histocodec.kernels.intrinsics import Intrinsic
from histocodec.kernels.objects import SYMBOL, Kind, Result, Stored, store, stored, writable_folder

SAID = "histocodec: compiling kernels for this processor, once; `histocodec warm` does that ahead"
WAIT_SECONDS = 120.0  # for another process that compiles; after that, both do
HEADER_BYTES = 64  # before the arrays that a kernel allocates; numba's header has 40
I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER = I8.as_pointer()


class Kernel(Protocol):
    """What this needs of a `jit.Kernel`."""

    name: str
    function: Callable[..., Any]

    @property
    def digest(self) -> str:
        """See `jit.Kernel`."""


# How numba sees kernels and intrinsics.


class KernelType(types.Callable, types.Dummy):  # type: ignore[misc]  # numba has no types
    """The type of a kernel, as one that others call."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        super().__init__(f"kernel({kernel.name})")

    @property
    def key(self) -> Any:
        """What distinguishes types: the kernel itself."""
        return self.kernel

    def get_call_type(self, context: Any, args: Any, kws: Any) -> Any:
        """The signature of a call; compiles the kernel for it."""
        if kws:
            args = tuple(Signature.from_callable(self.kernel.function).bind(*args, **kws).args)
        return _builds[-1].compiled(self.kernel, tuple(types.unliteral(arg) for arg in args)).signature

    def get_call_signatures(self) -> tuple[list[Any], bool]:
        """None that would be known before a call."""
        return [], True

    def get_impl_key(self, signature: Any) -> Any:
        """Where `Build.compiled` has put the code."""
        return (_builds[-1], self.kernel, signature.args)


datamodel.register_default(KernelType)(datamodel.models.OpaqueModel)


@cache
def _introduce(kernels: type[Kernel]) -> None:
    """Has numba know the class of kernels."""
    typeof_impl.register(kernels)(lambda kernel, context: KernelType(kernel))


@typeof_impl.register(Intrinsic)  # type: ignore[untyped-decorator]  # numba is not followed
def _typeof_intrinsic(described: Intrinsic, context: Any) -> Any:
    typing = cpu_target.typing_context
    made = _intrinsic(described)
    typing.refresh()  # which makes numba know it
    return typing.resolve_value_type(made)


@cache
def _intrinsic(described: Intrinsic) -> Any:
    """An intrinsic of numba's."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        name = f"histocodec.{described.name}"
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(I64 if described.returns else ir.VoidType(), [I64] * described.arguments)
            function = ir.Function(builder.module, kind, name)
            function.linkage = "linkonce_odr"
            function.attributes.add("noinline")
            inside = ir.IRBuilder(function.append_basic_block("entry"))
            result = described.emit(inside, *function.args)
            _ = inside.ret(result) if described.returns else inside.ret_void()
        called = builder.call(function, args)
        return called if described.returns else context.get_dummy_value()

    signature = (types.int64 if described.returns else types.void)(*[types.int64] * described.arguments)

    def typed(typing_context: Any, *addresses: Any) -> Any:
        return signature, codegen

    names = ["typing_context", *(f"address{n}" for n in range(described.arguments))]
    positional = [Parameter(each, Parameter.POSITIONAL_OR_KEYWORD) for each in names]
    typed.__signature__ = Signature(positional)  # type: ignore[attr-defined]  # numba asks for it, and wants no *
    typed.__name__ = described.name
    return intrinsic(typed)


class Build:
    """What numba makes of a kernel and all that it calls: in one library of code, so that LLVM optimises it once; or,
    without one, a library for each, for functions that numba itself calls."""

    def __init__(self, library: Any = None) -> None:
        self.library = library
        self._results: dict[tuple[Kernel, Any], Any] = {}

    def compiled(self, kernel: Kernel, argument_types: Any) -> Any:
        """numba's result for a kernel, whose code is not loaded."""
        key = (kernel, argument_types)
        if key not in self._results:
            flags = compiler.Flags()
            flags.nrt = True
            flags.error_model = "numpy"
            flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
            typing, target = cpu_target.typing_context, cpu_target.target_context
            result = compiler.compile_extra(
                typing, target, kernel.function, argument_types, None, flags, {}, library=self.library
            )
            libraries = [result.library] if self.library is None else []
            target.insert_user_function((self, *key), result.fndesc, libraries)
            self._results[key] = result
        return self._results[key]


_builds = [Build()]  # the last is the one that goes on; numba compiles one function at a time


# Objects.


class _Compilations(event.Listener):  # type: ignore[misc]
    """Counts the kernels that are compiled, since they were not stored, and says so at the first."""

    count = 0

    def add(self) -> None:
        """One more, which begins now."""
        if not self.count and sys.stderr is not None:
            print(SAID, file=sys.stderr, flush=True)
        self.count += 1

    def on_start(self, event: Any) -> None:
        """Called by numba when it begins to compile any function by its own dispatcher."""
        if event.data["dispatcher"].py_func.__module__.startswith("histocodec."):
            self.add()

    def on_end(self, event: Any) -> None:
        """Called by numba when it has compiled a function."""


compilations = _Compilations()
event.register("numba:compile", compilations)


def dispatcher(kernel: Kernel) -> Callable[..., Any]:
    """The kernel's function as numba calls it: with its own cache where that can be written, and compiled anew when
    anything that the kernel depends on has changed."""
    _introduce(type(kernel))
    try:
        function = numba.njit(kernel.function, nogil=True, error_model="numpy", cache=True)
    except RuntimeError:  # a read-only installation without a home
        return numba.njit(kernel.function, nogil=True, error_model="numpy")  # type: ignore[no-any-return]
    file = getattr(getattr(function, "_cache", None), "_cache_file", None)
    if file is not None and hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, kernel.digest)
    return function  # type: ignore[no-any-return]


def compile_and_store(kernel: Kernel, kinds: Sequence[Kind], text: str) -> Stored:
    """Compiles a kernel for arguments of these kinds, which `text` describes, and keeps it for other processes. Where
    another process is compiling, waits for that, since it may compile the same."""
    _introduce(type(kernel))
    with _one_process():
        found = stored(kernel.name, kernel.digest, text)
        if found is None:
            compilations.add()
            found = _object(kernel, tuple(_type_of(kind) for kind in kinds))
            store(kernel.name, kernel.digest, text, found)
    return found


@contextmanager
def _one_process() -> Iterator[None]:
    """Has one process at a time compile, where the folder of objects can be written and its file system has locks."""
    folder = writable_folder()
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock", timeout=WAIT_SECONDS, thread_local=False)
    with suppress(Timeout, OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _type_of(kind: Kind) -> Any:
    """numba's type of a kind of argument."""
    if kind is int:
        return types.int64
    if kind is float:
        return types.float64
    if kind is bool:
        return types.boolean
    if isinstance(kind, type):
        return numpy_support.from_dtype(np.dtype(kind))
    if isinstance(kind[0] if kind else None, np.dtype):
        dtype, dimensions, contiguous = kind
        return types.Array(numpy_support.from_dtype(dtype), dimensions, "C" if contiguous else "A")
    return types.Tuple([_type_of(member) for member in kind])


@global_compiler_lock  # type: ignore[untyped-decorator]
def _object(kernel: Kernel, argument_types: tuple[Any, ...]) -> Stored:
    """The object of a kernel, or none where only numba can run it: it returns an array, say."""
    typing, target = cpu_target.typing_context, cpu_target.target_context
    typing.refresh()
    target.refresh()
    library = target.codegen().create_library(kernel.name)
    _builds.append(Build(library))
    try:
        compiled = _builds[-1].compiled(kernel, argument_types)
    finally:
        _builds.pop()
    result = _result_of(compiled.fndesc.restype)
    if result is None:
        return Stored(b"", "nothing")
    module = target.create_module(f"{kernel.name}.entry")
    _define_entry(target, module, compiled.fndesc)
    _define_memory(module)
    library.add_ir_module(module)
    # As `library.finalize`, which would also give this code, and what stands for the runtime, to all that numba runs.
    for other in dict.fromkeys(library._linking_libraries):
        if other is not rtsys.library:
            library._final_module.link_in(other._get_module_for_linking(), preserve=True)
    for function in library._final_module.functions:
        if not function.is_declaration and function.name != SYMBOL:
            # Not internal: LLVM would inline whatever is called once, and so run out of registers in the inner loops.
            function.linkage = "linkonce_odr"
    library._optimize_final_module()
    text = str(library._final_module)
    if _refers_elsewhere(text):
        return Stored(b"", "nothing")
    return Stored(_machine().emit_object(llvm.parse_assembly(text)), result)


@cache
def _machine() -> Any:
    """LLVM's description of the processor that numba compiles for."""
    codegen = cpu_target.target_context.codegen()
    options: dict[str, Any] = {"opt": 3}
    codegen._customize_tm_options(options)
    return llvm.Target.from_default_triple().create_target_machine(**options)


def _result_of(kind: Any) -> Result | None:
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
        parts = [_result_of(member) for member in kind]
        return parts if all(isinstance(part, str) and part != "nothing" for part in parts) else None
    return None


def _define_entry(target: Any, module: ir.Module, described: Any) -> None:
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


def _define_memory(module: ir.Module) -> None:
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


def _refers_elsewhere(text: str) -> bool:
    """Whether LLVM's code calls what is neither in it nor in the C library: a function of numba's or Python's."""
    declared = re.findall(r"^declare [^\n]*?@\"?([\w.$]+)", text, re.MULTILINE)
    called = set(re.findall(r"@\"?([\w.$]+)", re.sub(r"^declare [^\n]*$", "", text, flags=re.MULTILINE)))
    library = ctypes.CDLL(None) if os.name == "posix" else ctypes.cdll.msvcrt
    external = (name for name in declared if name in called and not name.startswith("llvm."))
    return not all(hasattr(library, name) for name in external)
