"""SHA-256 of files and of objects in a store."""

import hashlib
from pathlib import Path

from histocodec.errors import FormatError
from histocodec.formats.container.abstract_store import Store
from histocodec.formats.container.files import check_regular

PIECE = 8 << 20  # bytes that are in memory at once


def file_digest(path: Path) -> bytes:
    """The SHA-256 of a file, 32 bytes. Raises FormatError where it is missing or cannot be read."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as exc:
        raise FormatError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def store_digest(store: Store, key: str, size: int | None = None) -> bytes:
    """The SHA-256 of an object, 32 bytes; `size` spares asking for it. Raises FormatError where it is missing or cannot
    be read."""
    size = store.size(key) if size is None else size
    if size is None:
        raise FormatError(f"{store.where(key)}: is missing")
    hashed = hashlib.sha256()
    for offset in range(0, size, PIECE):
        hashed.update(store.read_parts(key, [(offset, min(PIECE, size - offset))])[0])
    return hashed.digest()


def check_digest(store: Store, key: str, expected: str, size: int | None = None) -> None:
    """Raises FormatError unless an object has this SHA-256, in hexadecimal. `size` spares asking for it."""
    if store_digest(store, key, size).hex() != expected:
        raise FormatError(
            f"{store.where(key)}: is not the file written here (its SHA-256 differs): altered, or of another place or "
            "slide"
        )
