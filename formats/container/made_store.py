"""A store whose objects exist only while somebody reads them."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from histocodec.errors import FormatError
from histocodec.formats.container.abstract_store import Part, Store

if TYPE_CHECKING:
    import zarr.abc.store


class MadeStore(Store):
    """Objects that `make` makes, of which `size` and `entries` know all without making any."""

    @abstractmethod
    def make(self, key: str) -> bytes:
        """An object that there is. Raises FormatError where it cannot be made."""

    def read(self, key: str, most: int) -> bytes:
        """See `Store`."""
        size = self.size(key)
        if size is None or size > most:
            raise FormatError(f"{self.where(key)}: {'is missing' if size is None else f'has more than {most} bytes'}")
        return self.make(key)

    def read_parts(self, key: str, parts: Sequence[Part]) -> list[bytes]:
        """See `Store`."""
        data = self.read(key, self.size(key) or 0)
        for offset, length in parts:
            if offset + length > len(data):
                raise FormatError(f"{self.where(key)}: ends at byte {len(data)}")
        return [data[offset : offset + length] for offset, length in parts]

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See `Store`."""
        data = self.read(key, self.size(key) or 0)
        return data[-size:] if size else b"", len(data)

    def zarr(self) -> "zarr.abc.store.Store":
        """See `Store`."""
        from histocodec.formats.container.zarr_view import ZarrView

        return ZarrView(self)
