"""A tile source for large_image (Girder, HistomicsUI): compressed slides with ICC profile, associated images,
resolution and objective power. large_image finds it by the entry point `large_image.source`.

large_image halves from level to level, a container usually quarters: a tile in between is reduced from the next finer
level.
"""

import os
from typing import Any, ClassVar

import numpy as np
from large_image.cache_util import LruCacheMetaclass, methodcache
from large_image.constants import TILE_FORMAT_NUMPY, SourcePriority
from large_image.exceptions import TileSourceError, TileSourceFileNotFoundError
from large_image.tilesource import FileTileSource
from PIL import Image

from histocodec.errors import HistocodecError
from histocodec.formats.container.read import is_container
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.geometry import Region, ceil_div
from histocodec.slide import Pixels

TILE = 256  # pixels a side, as viewers ask for; four of them are a chunk
MICRONS_PER_MM = 1000.0


class HistocodecFileTileSource(FileTileSource, metaclass=LruCacheMetaclass):  # type: ignore[misc,metaclass]  # has no types
    """Tiles of a container, at a path. Raises TileSourceError for what is no container."""

    cacheName = "tilesource"
    name = "histocodec"
    extensions: ClassVar = {None: SourcePriority.LOW, "hcz": SourcePriority.PREFERRED, "zarr": SourcePriority.HIGH}
    mimeTypes: ClassVar = {None: SourcePriority.FALLBACK}

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, **options)
        self._largeImagePath = str(self._getLargeImagePath())
        self._slide = _opened(self._largeImagePath)
        first = self._slide.levels[0]
        self.sizeX, self.sizeY = first.width, first.height
        self.tileWidth = self.tileHeight = TILE
        self.levels = 1 + max(0, (ceil_div(max(self.sizeX, self.sizeY), TILE) - 1).bit_length())
        if self._slide.icc_profile is not None:
            self._iccprofiles = [self._slide.icc_profile]

    def getNativeMagnification(self) -> dict[str, float | None]:
        """Objective power, and the size of a pixel in mm."""
        mpp = self._slide.mpp
        return {
            "magnification": self._slide.objective_power,
            "mm_x": None if mpp is None else mpp[0] / MICRONS_PER_MM,
            "mm_y": None if mpp is None else mpp[1] / MICRONS_PER_MM,
        }

    def getInternalMetadata(self, **options: Any) -> dict[str, Any]:
        """The slide's properties, as OpenSlide names them, and the model that it was encoded with."""
        return {"openslide": dict(self._slide.properties), "histocodec": {"model": self._slide.model_id}}

    def getAssociatedImagesList(self) -> list[str]:
        """The names of the associated images."""
        return sorted(self._slide.associated)

    def _getAssociatedImage(self, imageKey: str) -> Image.Image | None:
        images = self._slide.associated
        return Image.fromarray(images[imageKey]) if imageKey in images else None

    @methodcache()  # type: ignore[untyped-decorator]
    def getTile(
        self, x: int, y: int, z: int, pilImageAllowed: bool = False, numpyAllowed: bool = False, **options: Any
    ) -> Any:
        """A tile of the level z, of which 0 is the smallest."""
        self._xyzInRange(x, y, z)
        try:
            pixels = self._tile(x, y, 2 ** (self.levels - 1 - z))
        except HistocodecError as exc:
            raise TileSourceError(str(exc)) from exc
        return self._outputTile(pixels, TILE_FORMAT_NUMPY, x, y, z, pilImageAllowed, numpyAllowed, **options)

    def _tile(self, x: int, y: int, scale: int) -> Pixels:
        """A tile (TILE, TILE, 3) whose pixels are `scale` pixels of level 0 wide; background beyond the edge."""
        slide = self._slide
        level = slide.level_for_factor(scale)
        factor = scale / slide.levels[level].downsample
        left, top = round(x * TILE * factor), round(y * TILE * factor)
        side = max(1, round(TILE * factor))
        pixels = slide.read(Region(left, top, side, side), level)
        if side == TILE:
            return pixels
        return np.array(Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BOX if side > TILE else None))


def _opened(path: str) -> CompressedSlide:
    if not os.path.exists(path):
        raise TileSourceFileNotFoundError(path)
    if not is_container(path):
        raise TileSourceError(f"{path}: is no container of histocodec")
    try:
        return open_compressed(path)
    except HistocodecError as exc:
        raise TileSourceError(str(exc)) from exc


def open(*arguments: Any, **options: Any) -> HistocodecFileTileSource:
    """The source for a path, as modules of large_image offer it."""
    return HistocodecFileTileSource(*arguments, **options)


def canRead(*arguments: Any, **options: Any) -> bool:
    """Whether a path is read here, as modules of large_image offer it."""
    return bool(HistocodecFileTileSource.canRead(*arguments, **options))
