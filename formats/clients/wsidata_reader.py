"""A reader for wsidata and LazySlide, and an `open_wsi` whose store never is the slide.

    from histocodec.formats.clients.wsidata_reader import open_wsi

    wsi = open_wsi("slide.hcz")  # a WSIData, which LazySlide takes; its store is slide.wsidata.zarr

wsidata keeps what it computes in `STEM.zarr` beside the slide. For a container `slide.hc.zarr` or `slide.zarr` that is
the container, which `write()` would overwrite.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import wsidata
from wsidata.reader.base import AssociatedImages, ReaderBase

from histocodec.errors import UsageError
from histocodec.formats.container.read import is_container
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.slide import Pixels

NAME = "histocodec"
STORE = ".wsidata.zarr"  # of a slide's store, after its name
ENDINGS = (".hcz", ".hc.zarr", ".zarr")  # that a store's name leaves out


class HistocodecReader(ReaderBase):  # type: ignore[misc]  # has no types
    """Reads containers for wsidata. Other files raise UsageError, so that wsidata goes on to its other readers."""

    name = NAME
    pkg_namespaces = "histocodec"
    pkgs = "histocodec"
    extensions = (".hcz", ".zarr")

    def __init__(self, file: str | os.PathLike[str], **options: Any) -> None:
        self.file = str(file)
        self.create_reader()
        self.set_properties({**self.reader.properties, **_stated(self.reader)})

    def create_reader(self) -> None:
        """Opens the slide."""
        if not is_container(self.file):
            raise UsageError(f"{self.file}: is no container")
        self.set_reader(open_compressed(self.file))

    def detach_reader(self) -> None:
        """Closes the slide."""
        if self._reader is not None:
            self._reader.close()
            self.set_reader(None)

    def get_region(self, x: float, y: float, width: int, height: int, level: int = 0, **options: Any) -> Pixels:
        """Pixels (height, width, 3) uint8; x and y in pixels of level 0."""
        found: Pixels = self.reader.read_array(
            (int(x), int(y)), int(self.translate_level(level)), (int(width), int(height))
        )
        return found

    def get_thumbnail(self, size: int, **options: Any) -> Pixels:
        """The whole slide with a longer side of `size` pixels."""
        height, width = self.properties.shape
        if size > height or size > width:
            raise ValueError("Requested thumbnail size is larger than the image")
        return np.array(self.reader.get_thumbnail((size, size)))

    @property
    def associated_images(self) -> AssociatedImages:
        """Label and macro, where the container has them."""
        return AssociatedImages(dict(self.reader.associated_images))


def _stated(slide: CompressedSlide) -> dict[str, str]:
    """Resolution and power where wsidata looks last, so that nothing in the vendor's properties overrides them."""
    return {} if slide.mpp is None else {"openslide.mpp-x": str(slide.mpp[0]), "openslide.mpp-y": str(slide.mpp[1])}


def register() -> None:
    """Makes wsidata's own `open_wsi(path, reader="histocodec")` read containers. Called twice, it does nothing more."""
    if NAME not in wsidata.reader.READERS:
        wsidata.reader.READERS[NAME] = HistocodecReader


def store_of(slide: str | os.PathLike[str]) -> Path:
    """Where `open_wsi` keeps what is computed: `NAME.wsidata.zarr` beside the slide."""
    path = Path(slide)
    name = path.name
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    return path.with_name(name + STORE)


def open_wsi(slide: str | os.PathLike[str], store: str | os.PathLike[str] | None = "auto", **options: Any) -> Any:
    """`wsidata.open_wsi` of a container, with a store of its own by default; see `store_of`. Raises UsageError where
    the store that is asked for is a container."""
    register()
    chosen = store_of(slide) if store == "auto" else store
    if chosen is not None and is_container(chosen):
        raise UsageError(f"{chosen}: is a container, which a store would overwrite; choose another store")
    return wsidata.open_wsi(slide, store=None if chosen is None else str(chosen), reader=NAME, **options)
