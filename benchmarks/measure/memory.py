"""How much memory a call takes at its peak, beyond what the process held before."""

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets VmHWM back to the present size


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Run the call and return its peak, in bytes; None where the system does not tell. Only Linux can reset a peak."""
    _return_freed_memory()
    before = None
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)
        before = _status_kilobytes("VmRSS")
    call()
    peak = _status_kilobytes("VmHWM")
    return None if before is None or peak is None else max(0, peak - before) * 1024


def resident_bytes(process: int | None = None) -> int | None:
    """What a process, by default this one, holds in memory now, in bytes; None where the system does not tell."""
    resident = _status_kilobytes("VmRSS", process)
    return None if resident is None else resident * 1024


def _return_freed_memory() -> None:
    """Return freed memory to the system; a call that takes it again would seem to take none."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # only glibc has it; Windows has no CDLL(None)
        ctypes.CDLL(None).malloc_trim(0)


def _status_kilobytes(field: str, process: int | None = None) -> int | None:
    status = Path("/proc") / ("self" if process is None else str(process)) / "status"
    with suppress(OSError):
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return None
