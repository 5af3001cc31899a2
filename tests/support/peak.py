"""How much memory this process has taken, for tests that run one to see."""

import sys
from pathlib import Path

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own peak")


def peak_memory() -> int:
    """MiB resident at most so far. Not getrusage's, which starts with the peak of the process that started this."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10
