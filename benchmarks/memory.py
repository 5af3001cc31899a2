"""How much memory a call takes at its peak, beyond what the process held before."""

import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets VmHWM back to the present size


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Runs the call. None where the system does not tell (only Linux lets the peak be set back). What the
    process has freed but kept is used first, so the figure is a lower bound."""
    gc.collect()
    before = None
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)
        before = _kilobytes("VmRSS")
    call()
    after = _kilobytes("VmHWM") if before is not None else None
    return None if before is None or after is None else max(0, after - before) * 1024


def _kilobytes(field: str) -> int | None:
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return None
