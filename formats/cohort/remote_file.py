"""A file in an object store as Python reads files, by ranges: for looking into a slide without copying it."""

import io
from functools import lru_cache

from histocodec.formats.container.client_process import ask
from histocodec.formats.container.obstore_client import locate

BLOCK = 256 << 10  # bytes of one request; the directories of a TIFF are some kilobytes each, scattered over the file
BLOCKS = 32  # that are kept


class RemoteFile(io.RawIOBase):
    """The object at a URL, read only. Reading raises StoreError, and FileNotFoundError where it is gone."""

    def __init__(self, url: str) -> None:
        self._server, self._key = locate(url)
        self._size: int = ask(self._server, "size", self._key)
        self._position = 0
        self._block = lru_cache(maxsize=BLOCKS)(self._fetched)
        self.name = url

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position, as files do."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def readinto(self, buffer: "memoryview | bytearray", /) -> int:  # type: ignore[override]  # of all it could be
        """Reads into a buffer, up to the end of a block. Returns the number of bytes."""
        number, skipped = divmod(self._position, BLOCK)
        if self._position >= self._size:
            return 0
        data = self._block(number)[skipped : skipped + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _fetched(self, number: int) -> bytes:
        start = number * BLOCK
        (data,) = ask(self._server, "ranges", self._key, [(start, min(BLOCK, self._size - start))])
        return bytes(data)
