"""The peak of memory of this process, for tests that run code in a process of its own."""

import sys
from pathlib import Path

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peak of a process alone")


def peak_memory() -> int:
    """The largest resident size so far, in MiB. That of getrusage would begin with the parent's peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10
