"""A file that one process at a time may have open, on file systems with locks and on those without.

Where the system can lock the file itself, nothing else appears on the disk, and the lock ends with its process. NFS,
Lustre and FUSE may be mounted without such locks. There a second file, <path>.lock, names the process that holds the
first. One that a killed process of this host left behind is taken over; of another host's process nothing can be known,
so its lock holds until somebody removes it.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from filelock import SoftFileLock, Timeout, lock_descriptor

from histocodec.errors import BusyError, OutputError

PATIENCE = 3.0  # seconds; filelock watches a lock file that was cut short for 2 s before it takes it over


class LockedFile:
    """A file that is open for reading and writing, and locked against every other `LockedFile` of the same path.

    It is made where it does not exist, with its folder. Raises BusyError, with the words `busy`, where another process,
    or another `LockedFile` of this one, holds it, and OutputError where it cannot be written.
    """

    def __init__(self, path: Path, *, busy: str | None = None) -> None:
        self.path = path
        self._busy = busy or f"{path}: another encode is writing to this place; wait for it, or give another path"
        self.file: IO[bytes]
        self._lock_file: SoftFileLock | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as exc:
            raise OutputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc

    def close(self) -> None:
        """Releases the file, which stays."""
        self.file.close()
        if self._lock_file is not None:
            self._lock_file.release()

    def remove(self) -> None:
        """Removes the file, and releases it."""
        try:
            self.path.unlink(missing_ok=True)  # while it is still locked
        except PermissionError:  # Windows removes no open file
            self.file.close()
            with suppress(OSError):  # whoever opened it in between has it now
                self.path.unlink(missing_ok=True)
        finally:
            self.close()

    def _open(self) -> None:
        while True:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)  # made if missing, and kept if not
            self.file = os.fdopen(os.open(self.path, flags, 0o666), "r+b")
            try:
                self._lock()
                if os.path.samestat(os.fstat(self.file.fileno()), self.path.stat()):
                    return
            except FileNotFoundError:
                pass  # its owner finished and removed it after we opened it and before we locked it
            except BaseException:
                self.close()
                raise
            self.close()

    def _lock(self) -> None:
        lock_path = lock_file_path(self.path)
        try:
            if not lock_descriptor(self.file.fileno(), blocking=False):
                raise BusyError(self._busy)
            if not lock_path.exists():
                return
        except OSError:
            pass  # this file system has no locks: ENOSYS, EOPNOTSUPP, ENOLCK and others
        self._lock_file = SoftFileLock(lock_path, timeout=PATIENCE, thread_local=False)
        try:
            self._lock_file.acquire()
        except Timeout as exc:
            raise BusyError(f"{self._busy}. {exc} Remove this file if that process has ended.") from exc


def lock_file_path(path: Path) -> Path:
    """The file that names the process which holds `path`, on a file system without locks."""
    return path.with_name(path.name + ".lock")
