"""The processor that kernels are compiled for: its name, and the instructions that it has, as LLVM calls them.

Linux tells both in /proc/cpuinfo, which takes no time. Elsewhere LLVM is asked, and where numba was told to compile for
another processor (its variables NUMBA_CPU_NAME …), numba.
"""

import os
import platform
import re
from functools import lru_cache
from pathlib import Path

INFO = Path("/proc/cpuinfo")
INFO_BYTES = 16 << 10  # enough for the first of the processors that it lists
VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX")
# Lines that say which processor it is, on x86 and on ARM; the others change with its temperature and load.
IDENTIFYING = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
)  # fmt: skip


def _told() -> tuple[str, ...]:
    """What numba was told to compile for."""
    return tuple(os.environ.get(name, "") for name in VARIABLES)


@lru_cache(maxsize=1)
def _info() -> dict[str, str]:
    """The identifying lines of the first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        with INFO.open("rb") as file:
            text = file.read(INFO_BYTES).decode("ascii", "replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines if name.strip() in IDENTIFYING}


@lru_cache(maxsize=1)
def features() -> frozenset[str]:
    """The features of the processor that kernels are compiled for, by LLVM's names."""
    listed = _info().get("flags", "")
    if listed and not any(_told()):
        return frozenset(re.sub(r"^(avx512|avx)_", r"\1", flag).replace("amx_", "amx-") for flag in listed.split())
    from numba.core.registry import cpu_target

    listed = cpu_target.target_context.codegen()._tm_features
    return frozenset(feature[1:] for feature in listed.split(",") if feature.startswith("+"))


@lru_cache(maxsize=1)
def identity() -> str:
    """What tells this processor from others for which other machine code may be compiled."""
    facts = sorted(_info().items())
    if not facts:
        import llvmlite.binding as llvm

        host = llvm.get_host_cpu_features()
        facts = [("name", llvm.get_host_cpu_name()), ("features", host.flatten())]
    return repr((platform.system(), platform.machine(), facts, _told()))
