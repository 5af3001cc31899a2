"""Kernels: functions that run as machine code, compiled once for each processor and kept on disk.

Decorate a function with `jit`, and call it like any other, from Python or from other kernels:

    @jit
    def add(values: NDArray[np.int32], more: int) -> int:
        total = 0
        for i in range(values.size):
            values[i] += more
            total += values[i]
        return total

A kernel is numba's nopython Python. Called from Python, it takes numbers, arrays and tuples of these, and returns
numbers, tuples of numbers or nothing; each combination of types is compiled by itself, with all kernels that it calls,
when it is first needed. What was compiled is kept (`objects`), so that numba is imported only where something must be
compiled (`compile`). Calls do not hold the GIL.

- A kernel may use other kernels, intrinsics (`products`), functions of numpy and math, and constants: numbers, tuples
  and arrays. These are part of what is compiled: a kernel is compiled anew when its code, that of a kernel it calls, a
  constant or a file of this package has changed, and not when it was only installed anew.
- Its first parameter may be `instructions`, an int. That is a constant, too: each value is compiled by itself, when it
  is first needed, without the branches for others, and so are the kernels that it is passed on to by that name.
- It may write to its arrays; read-only ones are not protected. No index is checked. It returns a status instead of
  raising.
- It may allocate arrays, with `np.empty` and `np.zeros`, but not return them: one that does is left to numba's own
  calls and cache, and importing numba takes half a second.
- NUMBA_DISABLE_JIT=1 runs kernels as plain Python, except for those that use intrinsics.
"""

import ctypes
import inspect
import os
import struct
from array import array
from collections.abc import Callable
from functools import cache, cached_property, update_wrapper
from typing import Any, TypeVar, cast

import numpy as np

from histocodec.forks import Lock
from histocodec.kernels.objects import CONSTANT, Code, Kind, Known, digest_of, load, stored

Function = TypeVar("Function", bound=Callable[..., Any])

_C_CONTIGUOUS, _ALIGNED = 0x1, 0x100  # of numpy's flags


def jit(function: Function) -> Function:
    """Decorate a function so that it is compiled on the first call, for each combination of argument types. See above
    for what it may do."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return function
    return cast(Function, Kernel(function))


class Kernel:
    """A function that runs as machine code; made by `jit`. Thread-safe."""

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self.function = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.codes: dict[tuple[object, ...], Code | None] = {}  # by types of arguments; None: left to numba
        self._has_constant = function.__code__.co_varnames[:1] == (CONSTANT,) and function.__code__.co_argcount > 0
        self._lock = Lock()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The function's result. The types of the arguments choose the code that computes it."""
        if named:
            bound = inspect.signature(self.function).bind(*arguments, **named)
            arguments = bound.args
        key: list[object] = []
        values: list[int] = []
        for argument in arguments:
            if type(argument) is np.ndarray:  # most are; `_lay_out` does the same
                key.append(argument.dtype)
                key.append(argument.ndim << 16 | argument.flags.num & (_C_CONTIGUOUS | _ALIGNED))
                values.append(id(argument))
            elif type(argument) is int:
                key.append(int)
                values.append(argument)
            elif not _lay_out(argument, key, values):
                return self.dispatcher(*arguments)
        if self._has_constant:
            key.append(arguments[0])
        types = tuple(key)
        try:
            code = self.codes[types]
        except KeyError:
            code = self._find(types, arguments)
        if code is None:
            return self.dispatcher(*arguments)
        memory = array("q", code.room + values)
        if code.function(memory.buffer_info()[0]):
            raise RuntimeError(f"{self.name}: failed for lack of memory, or raised an error, which kernels must not")
        return code.results(memory)

    @cached_property
    def digest(self) -> str:
        """What changes with everything that the function's machine code depends on, but for processor and types."""
        return digest_of(self.function)

    @cached_property
    def dispatcher(self) -> Callable[..., Any]:
        """The function as numba itself compiles, caches and calls it."""
        from histocodec.kernels.compile import dispatcher

        return dispatcher(self)

    def _find(self, types: tuple[object, ...], arguments: tuple[Any, ...]) -> Code | None:
        """The code for arguments of these types: loaded where it was compiled before, else compiled. None for what only
        numba takes."""
        with self._lock:
            if types not in self.codes:
                kinds = [_kind(argument) for argument in arguments]
                if self._has_constant and kinds[0] is int:
                    kinds[0] = Known(arguments[0])
                self.codes[types] = None if None in kinds or not arrays_lie_as_expected() else self._found(kinds)
            return self.codes[types]

    def _found(self, kinds: list[Kind]) -> Code | None:
        text = ", ".join(_described(kind) for kind in kinds)
        found = stored(self.name, self.digest, text)
        if found is None:
            from histocodec.kernels.compile import compile_and_store

            found = compile_and_store(self, kinds, text)
        return load(found) if found.object else None


def compiled_kernels() -> int:
    """How many kernels this process has compiled so far, each for one combination of argument types."""
    import sys

    module = sys.modules.get("histocodec.kernels.compile")
    return 0 if module is None else int(module.compilations.count)


def _lay_out(argument: Any, key: list[object], values: list[int]) -> bool:
    """Adds what an argument's type is, and the integers that the code takes for it: a number, or where an array's
    object is. False for what only numba takes."""
    kind = type(argument)
    if isinstance(argument, np.ndarray):
        kind = argument.dtype
        key.append(argument.ndim << 16 | argument.flags.num & (_C_CONTIGUOUS | _ALIGNED))
        values.append(id(argument))
    elif kind is int or kind is bool:
        values.append(argument)
    elif kind is float or kind is np.float64:
        values += struct.unpack("q", struct.pack("d", argument))
    elif kind is np.float32:
        values += struct.unpack("i", struct.pack("f", argument))
    elif isinstance(argument, np.integer):
        values.append(int(argument) - (1 << 64 if argument >= 1 << 63 else 0))
    elif kind is np.bool_:
        values.append(int(argument))
    elif kind is tuple:
        key.append(len(argument))
        if not all(_lay_out(member, key, values) for member in argument):
            return False
    else:
        return False
    key.append(kind)
    return True


def _kind(argument: Any) -> Kind | None:
    """What an argument is; None for what only numba takes."""
    if isinstance(argument, np.ndarray):
        simple = argument.dtype.isnative and argument.dtype.kind in "biuf" and argument.dtype.itemsize <= 8
        if not simple or not argument.ndim or not argument.flags.aligned:
            return None
        return argument.dtype, argument.ndim, argument.flags.c_contiguous
    if isinstance(argument, tuple):
        members = tuple(_kind(member) for member in argument)
        return None if None in members else members
    return {np.float64: float, np.bool_: bool}.get(type(argument), type(argument))


@cache
def arrays_lie_as_expected() -> bool:
    """Whether numpy's arrays lie in memory as its C API has them in numpy 1 and 2 (PyArrayObject_fields). Machine code
    finds an array's elements, shape and strides in the array's object, since asking for them takes long."""
    sample = np.arange(12, dtype=np.int16).reshape(3, 4)[::2, 1:]
    fields = (ctypes.c_void_p * 4).from_address(id(sample) + object.__basicsize__)
    if fields[0] != sample.ctypes.data or fields[1] is None or fields[1] & 0xFFFFFFFF != sample.ndim:
        return False
    pairs = ((fields[2], sample.shape), (fields[3], sample.strides))
    return all(where and tuple((ctypes.c_ssize_t * 2).from_address(where)) == values for where, values in pairs)


def _described(kind: Kind) -> str:
    """A kind in words that are the same in every process."""
    if isinstance(kind, type):
        return kind.__name__
    if isinstance(kind, Known):
        return f"{CONSTANT} {kind.value}"
    if len(kind) == 3 and isinstance(kind[0], np.dtype):
        return f"{kind[0].name}[{kind[1]}{'' if kind[2] else ' strided'}]"
    return f"({', '.join(_described(member) for member in kind)})"
