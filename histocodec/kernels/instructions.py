"""Sums of four products of bytes: the one instruction that differs between processors, and which this one has.

`add_products` emits LLVM's code for acc + Σ a·w, where each 32-bit lane of a holds four unsigned bytes and that of w
four signed ones. All instruction sets give the same integers: none of the forms here saturates.

    amx           tdpbusd on tiles of 16 positions and 16 outputs; 16 lanes for all that is no product
    avx512-vnni   vpdpbusd on 16 lanes
    avx-vnni      vpdpbusd on 8 lanes, of AVX-VNNI or AVX-512VL
    avx2          vpmaddwd on the even and the odd bytes as 16-bit numbers, 8 lanes; vpmaddubsw could saturate
    generic       shifts and products of 32 bits on 4 lanes, which LLVM translates for any processor

Where a processor lacks an instruction, the code of that set has the same lanes and loops with generic products in them:
so each can be tested everywhere.
"""

import ctypes
import os
import sys
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from llvmlite import ir

from histocodec.errors import UsageError
from histocodec.kernels.processor import features

NAMES = ("amx", "avx512-vnni", "avx-vnni", "avx2", "generic")  # the index is what kernels take; the fastest first
AMX, AVX512_VNNI, AVX_VNNI, AVX2, GENERIC = range(len(NAMES))
VARIABLE = "HISTOCODEC_INSTRUCTIONS"  # environment variable that forces one of them
LANES = {"amx": 16, "avx512-vnni": 16, "avx-vnni": 8, "avx2": 8, "generic": 4}
_NEEDED = {
    "amx": {"amx-tile", "amx-int8", "avx512vnni", "avx512bw"},
    "avx512-vnni": {"avx512vnni", "avx512bw"},
    "avx-vnni": {"avxvnni"},
    "avx2": {"avx2"},
    "generic": set(),
}
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64: tiles are off until asked for

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()


def available(name: str) -> bool:
    """Whether this processor has the instructions of that name."""
    if name == "avx-vnni" and {"avx512vnni", "avx512vl"} <= features():
        return True
    return _NEEDED[name] <= features() and (name != "amx" or _may_use_tiles())


@lru_cache(maxsize=1)
def _may_use_tiles() -> bool:
    """Asks the system whether this process may use AMX's tiles; all of its threads and forked children then may."""
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


def fastest() -> int:
    """The number in NAMES of the fastest instructions here, or of those that HISTOCODEC_INSTRUCTIONS names. Raises
    UsageError where it names none."""
    forced = os.environ.get(VARIABLE)
    if forced:
        if forced not in NAMES:
            raise UsageError(f"{VARIABLE} is {forced!r}; {', '.join(NAMES)} are allowed")
        if forced == "amx" and _NEEDED["amx"] <= features() and not available("amx"):
            raise UsageError(f"{VARIABLE} is 'amx'; this system does not let programs use its tiles. Choose another")
        return NAMES.index(forced)
    return next(n for n, name in enumerate(NAMES) if available(name))


def ready(instructions: int | None) -> int:
    """The number of the instructions that kernels are to use, by default of the fastest, once the system has allowed
    them."""
    number = fastest() if instructions is None else instructions
    if number == AMX:
        available("amx")
    return number


def runs_natively() -> bool:
    """Whether native kernels are the fastest way here: the processor has instructions for products of bytes, or was
    told which to use, or there is no torch. The generic ones are slower than its products in floating point."""
    return NAMES[fastest()] != "generic" or bool(os.environ.get(VARIABLE)) or find_spec("torch") is None


def vector(element: ir.Type, lanes: int) -> ir.VectorType:
    """The type of a vector of so many lanes."""
    return ir.VectorType(element, lanes)


def splat(value: float, element: ir.Type, lanes: int) -> ir.Constant:
    """A vector that holds one constant in every lane."""
    return ir.Constant(vector(element, lanes), [ir.Constant(element, value)] * lanes)


def external(builder: ir.IRBuilder, kind: ir.FunctionType, name: str) -> Any:
    """A function of LLVM's that the code may call."""
    return builder.module.globals.get(name) or ir.Function(builder.module, kind, name)


def add_products(builder: ir.IRBuilder, name: str, acc: Any, a: Any, w: Any) -> Any:
    """acc + Σ a·w: `acc` is a vector of 32-bit lanes, `a` holds four unsigned bytes in each lane, `w` four signed."""
    lanes = acc.type.count
    if name in ("amx", "avx512-vnni", "avx-vnni") and available(name):
        return _vpdpbusd(builder, acc, a, w)
    if name == "avx2" and available(name):
        return _vpmaddwd(builder, acc, a, w)
    for n in range(4):
        product = builder.mul(_unsigned_byte(builder, a, n, lanes), _signed_byte(builder, w, n, lanes))
        acc = builder.add(acc, product)
    return acc


def _vpdpbusd(builder: ir.IRBuilder, acc: Any, a: Any, w: Any) -> Any:
    import llvmlite.binding as llvm

    lanes = acc.type.count
    wide, operands = acc.type, vector(I8, 4 * lanes)
    takes_bytes = llvm.llvm_version_info[0] >= 21  # before, the operands had the accumulator's type
    kind = ir.FunctionType(wide, [wide, operands, operands] if takes_bytes else [wide, wide, wide])
    function = external(builder, kind, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}")
    pair = [builder.bitcast(x, operands) for x in (a, w)] if takes_bytes else [a, w]
    return builder.call(function, [acc, *pair])


def _vpmaddwd(builder: ir.IRBuilder, acc: Any, a: Any, w: Any) -> Any:
    """The even and the odd bytes of each lane, two at a time, as 16-bit numbers: each pair of products fits 32 bits."""
    lanes = acc.type.count
    halves, low = vector(I16, 2 * lanes), splat(0x00FF00FF, I32, lanes)
    kind = ir.FunctionType(acc.type, [halves, halves])
    function = external(builder, kind, "llvm.x86.avx2.pmadd.wd")
    eight = splat(8, I16, 2 * lanes)
    as_halves = builder.bitcast(w, halves)
    even_w, odd_w = builder.ashr(builder.shl(as_halves, eight), eight), builder.ashr(as_halves, eight)
    even_a = builder.bitcast(builder.and_(a, low), halves)
    odd_a = builder.lshr(builder.bitcast(a, halves), eight)
    for x, y in ((even_a, even_w), (odd_a, odd_w)):
        acc = builder.add(acc, builder.call(function, [x, y]))
    return acc


def _unsigned_byte(builder: ir.IRBuilder, x: Any, n: int, lanes: int) -> Any:
    return builder.and_(builder.lshr(x, splat(8 * n, I32, lanes)), splat(255, I32, lanes))


def _signed_byte(builder: ir.IRBuilder, x: Any, n: int, lanes: int) -> Any:
    return builder.ashr(builder.shl(x, splat(24 - 8 * n, I32, lanes)), splat(24, I32, lanes))
