"""Compiling kernels with numba, in one way everywhere: without the GIL, and cached on disk where that is possible."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def jit(kernel: Kernel) -> Kernel:
    """Decorate a function so that numba compiles it on the first call, for each combination of argument types.

    The machine code is cached on disk. Where nothing can be written (a read-only installation without a home), numba
    refuses to cache, and the code lives for this process only.
    """
    try:
        return cast(Kernel, numba.njit(kernel, nogil=True, error_model="numpy", cache=True))
    except RuntimeError:
        return cast(Kernel, numba.njit(kernel, nogil=True, error_model="numpy"))
