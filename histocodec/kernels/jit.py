"""Compiling kernels with numba, in one way everywhere: without the GIL, and kept on disk where that is possible."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def jit(kernel: Kernel) -> Kernel:
    """Compile on the first call and keep the machine code on disk; where nothing can be written (a read-only
    installation without a home), numba refuses to cache and the code lives for this process only."""
    try:
        return cast(Kernel, numba.njit(kernel, nogil=True, error_model="numpy", cache=True))
    except RuntimeError:
        return cast(Kernel, numba.njit(kernel, nogil=True, error_model="numpy"))
