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
- It may write to its arrays; read-only ones are not protected. No index is checked. It returns a status instead of
  raising.
- It may allocate arrays, with `np.empty` and `np.zeros`, but not return them: one that does is left to numba's own
  calls and cache, and importing numba takes half a second.
- NUMBA_DISABLE_JIT=1 runs kernels as plain Python, except for those that use intrinsics.
"""

import inspect
import os
import struct
from array import array
from collections.abc import Callable
from functools import cached_property, update_wrapper
from typing import Any, TypeVar, cast

import numpy as np

from histocodec.forks import Lock
from histocodec.kernels.objects import Code, Kind, digest_of, load, stored

Function = TypeVar("Function", bound=Callable[..., Any])

_BEHAVED = 0x101  # numpy's flags C_CONTIGUOUS and ALIGNED
_ALIGNED = 0x100


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
        self.codes: dict[tuple[Kind, ...], Code | None] = {}  # None: left to numba
        self._lock = Lock()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The function's result. The types of the arguments choose the code that computes it."""
        if named:
            bound = inspect.signature(self.function).bind(*arguments, **named)
            arguments = bound.args
        kinds: list[Kind] = []
        values: list[int] = []
        for argument in arguments:
            if not _flatten(argument, kinds, values):
                return self.dispatcher(*arguments)
        key = tuple(kinds)
        try:
            code = self.codes[key]
        except KeyError:
            code = self._find(key)
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

    def _find(self, key: tuple[Kind, ...]) -> Code | None:
        """The code for arguments of these kinds: loaded where it was compiled before, else compiled."""
        with self._lock:
            if key not in self.codes:
                text = ", ".join(_described(kind) for kind in key)
                found = stored(self.name, self.digest, text)
                if found is None:
                    from histocodec.kernels.compile import compile_and_store

                    found = compile_and_store(self, key, text)
                self.codes[key] = load(found) if found.object else None
            return self.codes[key]


def compiled_kernels() -> int:
    """How many kernels this process has compiled so far, each for one combination of argument types."""
    import sys

    module = sys.modules.get("histocodec.kernels.compile")
    return 0 if module is None else int(module.compilations.count)


def _flatten(argument: Any, kinds: list[Kind], values: list[int]) -> bool:
    """Adds an argument's kind, and the integers that the code takes for it: a number, or an array's address, shape and,
    unless it is C-contiguous, strides. False for what only numba takes."""
    if isinstance(argument, np.ndarray):
        flags, shape = argument.flags.num, argument.shape
        if not shape or not flags & _ALIGNED:
            return False
        contiguous = flags & _BEHAVED == _BEHAVED
        kinds.append((argument.dtype, len(shape), contiguous))
        values.append(argument.ctypes.data)
        values += shape
        if not contiguous:
            values += argument.strides
        return argument.dtype.isnative and argument.dtype.kind in "biuf"
    kind: Kind = type(argument)
    if kind is int or kind is bool:
        values.append(argument)
    elif kind is float or kind is np.float64:
        values += struct.unpack("q", struct.pack("d", argument))
        kind = float
    elif kind is np.float32:
        values += struct.unpack("i", struct.pack("f", argument))
    elif isinstance(argument, np.integer):
        values.append(int(argument) - (1 << 64 if argument >= 1 << 63 else 0))
    elif isinstance(argument, np.bool_):
        values.append(int(argument))
        kind = bool
    elif kind is tuple:
        members: list[Kind] = []
        if not all(_flatten(member, members, values) for member in argument):
            return False
        kind = tuple(members)
    else:
        return False
    kinds.append(kind)
    return True


def _described(kind: Kind) -> str:
    """A kind in words that are the same in every process."""
    if isinstance(kind, type):
        return kind.__name__
    if len(kind) == 3 and isinstance(kind[0], np.dtype):
        return f"{kind[0].name}[{kind[1]}{'' if kind[2] else ' strided'}]"
    return f"({', '.join(_described(member) for member in kind)})"
