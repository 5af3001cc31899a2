"""Compiling kernels with numba to object files that need neither numba nor Python.

Each object has one function, which takes the address of int64s: room for the kernel's results, then what
`jit.Kernel` lays out for its arguments. It returns 0, or something else where the kernel failed. It refers to nothing
but the C library, so it can be loaded on its own, at any address.

Kernels that call each other are compiled into one another: numba types a `Kernel` by `KernelType` and an `Intrinsic` as
its own intrinsics. Most of the time goes into numba's own Python, not into LLVM. So what several kernels call is
translated once in a process, and branches that a kernel's `CONSTANT` decides are gone before anything else looks at
them.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from inspect import Parameter, Signature
from operator import attrgetter
from typing import Any, Protocol

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import compiler, datamodel, event, untyped_passes
from numba.core import ir as numba_ir
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.extending import intrinsic, typeof_impl
from numba.np import numpy_support

from histocodec.kernels.entry import define_entry, define_memory, refers_elsewhere, result_of
from histocodec.kernels.intrinsics import Intrinsic
from histocodec.kernels.objects import (
    CONSTANT,
    SYMBOL,
    Kind,
    Known,
    Stored,
    store,
    stored,
    writable_folder,
)

SAID = "histocodec: compiling kernels for this processor, once; `histocodec warm` does that ahead"
WAIT_SECONDS = 120.0  # for another process that compiles; after that, both do
I64 = ir.IntType(64)

code_of = attrgetter("library")  # numba's name for the machine code of what it compiled


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
        return _builds[-1].compiled(self.kernel, _argument_types(self.kernel, args)).signature

    def get_call_signatures(self) -> tuple[list[Any], bool]:
        """None that would be known before a call."""
        return [], True

    def get_impl_key(self, signature: Any) -> Any:
        """Where `Build.compiled` has put the code."""
        return (_builds[-1], self.kernel, signature.args)


datamodel.register_default(KernelType)(datamodel.models.OpaqueModel)


def _argument_types(kernel: Kernel, args: Any) -> Any:
    """The types of a call's arguments: no literals, but for CONSTANT."""
    names = Signature.from_callable(kernel.function).parameters
    return tuple(
        arg if name == CONSTANT and isinstance(arg, types.IntegerLiteral) else types.unliteral(arg)
        for name, arg in zip(names, args, strict=True)
    )


@cache
def _introduce(kernels: type[Kernel]) -> None:
    """Has numba know the class of kernels."""
    typeof_impl.register(kernels)(lambda kernel, context: KernelType(kernel))


@typeof_impl.register(Intrinsic)  # type: ignore[untyped-decorator]  # numba is not followed
def _typeof_intrinsic(described: Intrinsic, context: Any) -> Any:
    return _type_of_intrinsic(described)


@cache
def _type_of_intrinsic(described: Intrinsic) -> Any:
    typing = cpu_target.typing_context
    made = _intrinsic(described)
    typing.refresh()  # which makes numba know it
    return typing.resolve_value_type(made)


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


@register_pass(mutates_CFG=False, analysis_only=False)
class _KnownArguments(FunctionPass):  # type: ignore[misc]
    """Puts the value in place of an argument that is known, so that numba prunes the branches that it decides."""

    _name = "histocodec_known_arguments"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Whether it changed anything."""
        changed = False
        for block in state.func_ir.blocks.values():
            for statement in block.find_insts(numba_ir.Assign):
                kind = state.args[statement.value.index] if isinstance(statement.value, numba_ir.Arg) else None
                if isinstance(kind, types.IntegerLiteral):
                    known = numba_ir.Const(kind.literal_value, statement.loc)
                    state.func_ir._definitions[statement.target.name] = [known]
                    statement.value = known
                    changed = True
        return changed


class _Compiler(compiler.CompilerBase):  # type: ignore[misc]
    """numba's compiler with `_KnownArguments`."""

    def define_pipelines(self) -> list[Any]:
        """See `CompilerBase`."""
        passes = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_KnownArguments, untyped_passes.IRProcessing)
        passes.finalize()
        return [passes]


class Build:
    """What numba makes of kernels and of all that they call. With `apart`, each has a library of code, as functions
    need that numba itself calls; else a module that is neither optimised nor loaded, for `linked`."""

    def __init__(self, *, apart: bool) -> None:
        self._apart = apart
        self._results: dict[tuple[Kernel, Any], Any] = {}
        self._called: dict[Any, dict[Any, None]] = {}  # by what calls them
        self._under_way: list[Any] = []

    def compiled(self, kernel: Kernel, argument_types: Any) -> Any:
        """numba's result for a kernel, whose code is not loaded."""
        key = (kernel, argument_types)
        if self._under_way:
            self._called[self._under_way[-1]][key] = None
        if key not in self._results:
            flags = compiler.Flags()
            flags.nrt = True
            flags.error_model = "numpy"
            flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
            typing, target = cpu_target.typing_context, cpu_target.target_context
            library = None if self._apart else target.codegen().create_library(kernel.name)
            self._called[key] = {}
            self._under_way.append(key)
            try:
                result = compiler.compile_extra(
                    typing, target, kernel.function, argument_types, None, flags, {}, library=library,
                    pipeline_class=_Compiler,
                )  # fmt: skip
            finally:
                self._under_way.pop()
            target.insert_user_function((self, *key), result.fndesc, [code_of(result)] if self._apart else [])
            self._results[key] = result
        return self._results[key]

    def linked(self, kernel: Kernel, argument_types: Any, library: Any) -> None:
        """Puts the code of a kernel, which was compiled, and of all that it calls into one library, which LLVM can then
        optimise as a whole."""
        needed: dict[Any, None] = {}
        waiting, runtime = [(kernel, argument_types)], {}
        while waiting:
            key = waiting.pop()
            if key not in needed:
                needed[key] = None
                module = code_of(self._results[key])
                library._final_module.link_in(module._final_module, preserve=True)
                runtime.update(dict.fromkeys(module._linking_libraries))
                waiting += self._called[key]
        for other in runtime:
            if other is not code_of(rtsys):
                library._final_module.link_in(other._get_module_for_linking(), preserve=True)


_OBJECTS = Build(apart=False)
_builds = [Build(apart=True)]  # the last is the one that goes on; numba compiles one function at a time


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
    if isinstance(kind, Known):
        return types.literal(kind.value)
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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Has Python not look for garbage while numba builds up what it needs, which takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@global_compiler_lock  # type: ignore[untyped-decorator]
@_uncollected()
def _object(kernel: Kernel, argument_types: tuple[Any, ...]) -> Stored:
    """The object of a kernel, or none where only numba can run it: it returns an array, say."""
    typing, target = cpu_target.typing_context, cpu_target.target_context
    typing.refresh()
    target.refresh()
    _builds.append(_OBJECTS)
    try:
        compiled = _OBJECTS.compiled(kernel, argument_types)
    finally:
        _builds.pop()
    result = result_of(compiled.fndesc.restype)
    if result is None:
        return Stored(b"", "nothing")
    library = target.codegen().create_library(kernel.name)
    module = target.create_module(f"{kernel.name}.entry")
    define_entry(target, module, compiled.fndesc)
    define_memory(module)
    # As `library.finalize`, which would also give this code, and what stands for the runtime, to all that numba runs.
    _OBJECTS.linked(kernel, argument_types, library)
    library.add_ir_module(module)
    for function in library._final_module.functions:
        if not function.is_declaration and function.name != SYMBOL:
            # Not internal: LLVM would inline whatever is called once, and so run out of registers in the inner loops.
            function.linkage = "linkonce_odr"
    library._optimize_final_module()
    text = str(library._final_module)
    if refers_elsewhere(text):
        return Stored(b"", "nothing")
    return Stored(_machine().emit_object(llvm.parse_assembly(text)), result)


@cache
def _machine() -> Any:
    """LLVM's description of the processor that numba compiles for."""
    codegen = cpu_target.target_context.codegen()
    options: dict[str, Any] = {"opt": 3}
    codegen._customize_tm_options(options)
    return llvm.Target.from_default_triple().create_target_machine(**options)
