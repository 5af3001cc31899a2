"""Intrinsics: calls in a kernel for which a function writes LLVM's code. `compile` shows them to numba."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Intrinsic:
    """A function of so many 64-bit integers, most of them addresses, that returns one, or nothing. `emit` writes its
    code: it takes LLVM's builder and the arguments, and returns the result. In the machine code it is a function of its
    own, there once however often it is called."""

    name: str
    arguments: int
    emit: Callable[..., Any]
    returns: bool

    def __call__(self, *arguments: int) -> int:
        """Only within a kernel that is compiled."""
        raise NotImplementedError(f"{self.name}: an intrinsic; only compiled kernels can call it")


def native(name: str, arguments: int, emit: Callable[..., Any], *, returns: bool = False) -> Intrinsic:
    """An intrinsic on 64-bit integers, whose code `emit(builder, *arguments)` writes. `returns` tells whether it gives
    an integer."""
    return Intrinsic(name, arguments, emit, returns)
