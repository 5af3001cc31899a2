"""How much memory a call takes at its peak, beyond what the process held before."""

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets VmHWM back to the present size


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Runs the call. None where the system does not tell: only Linux lets the peak be set back."""
    _give_back()
    before = None
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)
        before = _kilobytes("VmRSS")
    call()
    after = _kilobytes("VmHWM")
    return None if before is None or after is None else max(0, after - before) * 1024


def resident_bytes() -> int | None:
    """What this process holds in memory now; None where the system does not tell."""
    now = _kilobytes("VmRSS")
    return None if now is None else now * 1024


def _give_back() -> None:
    """Freed memory to the system; a call that takes it again would seem to take none."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(field: str) -> int | None:
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return None
