"""Who works on a ledger: one process at a time, named in a file beside it, whose lock ends with that process.

<ledger>.holder        locked while a run lives; its text says who that is
<ledger>.holder.lock   only on file systems without locks (see encode/lock.py)
"""

import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from histocodec.errors import BusyError
from histocodec.formats.encode.lock import LockedFile

MOST_TEXT = 4096  # bytes of the file


def holder_path(ledger: Path) -> Path:
    """The file that says who works on a ledger."""
    return ledger.with_name(ledger.name + ".holder")


def myself(work: str) -> str:
    """This process in words: `cohort run by anna on node7, process 4711, since 2026-01-31 10:00:00 UTC`."""
    with suppress(Exception):  # no such user in the system's list
        return _words(work, getpass.getuser())
    return _words(work, f"user {os.getuid() if hasattr(os, 'getuid') else '?'}")


@contextmanager
def holding(ledger: Path, work: str) -> Iterator[str]:
    """Makes this process the only one that works on a ledger; yields its name in words. What a killed process left is
    taken over. Raises BusyError, which names the other, where another one works on it."""
    path, words = holder_path(ledger), myself(work)
    try:
        file = LockedFile(path, busy=f"{ledger}: is being worked on")
    except BusyError as exc:
        raise BusyError(
            f"{ledger}: is being worked on{_named(path)}. Wait until it ends, or stop it; then `histocodec cohort run` "
            f"goes on. ({exc})"
        ) from exc
    try:
        file.file.seek(0)
        file.file.truncate()
        file.file.write(json.dumps({"holder": words}).encode())
        file.file.flush()
        yield words
    finally:
        file.remove()


def _words(work: str, user: str) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return f"cohort {work} by {user} on {socket.gethostname()}, process {os.getpid()}, since {since}"


def _named(path: Path) -> str:
    """Who the file says it is; empty where it cannot be read, which some systems' locks prevent."""
    with suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
        return f": {json.loads(file.read(MOST_TEXT))['holder']}"
    return ""
