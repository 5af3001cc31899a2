"""Compiling kernels with numba, in one way everywhere: without the GIL, and cached on disk where that is possible."""

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import event

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
SAID = "histocodec: compiling kernels for this processor, once; `histocodec warm` does that ahead"


def jit(kernel: Kernel) -> Kernel:
    """Decorate a function so that numba compiles it on the first call, for each combination of argument types.

    The machine code is cached on disk. Where nothing can be written (a read-only installation without a home), numba
    refuses to cache, and the code lives for this process only.
    """
    try:
        compiled = numba.njit(kernel, nogil=True, error_model="numpy", cache=True)
        _depend_on_all_kernels(compiled)
        return cast(Kernel, compiled)
    except RuntimeError:
        return cast(Kernel, numba.njit(kernel, nogil=True, error_model="numpy"))


def _depend_on_all_kernels(compiled: Any) -> None:
    """Has numba compile a kernel anew when a file of this package has changed, not only when its own has: its machine
    code includes what it calls, and packed weights must fit it."""
    file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if file is not None and hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, _stamp())


@lru_cache(maxsize=1)
def _stamp() -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of each file here."""
    files = ((path.name, path.stat()) for path in sorted(Path(__file__).parent.glob("*.py")))
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in files)


class _Compilations(event.Listener):
    """Counts the kernels of histocodec that numba compiles, since they were not cached, and says so at the first."""

    count = 0

    def on_start(self, event: Any) -> None:
        """Called by numba when it begins to compile any function."""
        if not event.data["dispatcher"].py_func.__module__.startswith("histocodec."):
            return
        if not self.count and sys.stderr is not None:
            print(SAID, file=sys.stderr, flush=True)
        self.count += 1

    def on_end(self, event: Any) -> None:
        """Called by numba when it has compiled a function."""


_compilations = _Compilations()
event.register("numba:compile", _compilations)  # type: ignore[no-untyped-call]  # numba has no types


def compiled_kernels() -> int:
    """How many kernels this process has compiled so far, each for one combination of argument types."""
    return _compilations.count
