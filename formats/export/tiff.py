"""A whole slide as a TIFF: all levels, tiled, which OpenSlide, libvips and QuPath open; or as an OME-TIFF, whose levels
Bio-Formats finds, since they lie in SubIFDs there.

```
 TIFF       page 0: level 0 ── page 1: level 1 ── page 2: level 2
 OME-TIFF   page 0: level 0, OME-XML ──────────── page 1: label ── page 2: macro
              └── SubIFDs: level 1, level 2
```

A file is whole or absent.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from histocodec.errors import UsageError
from histocodec.formats.container.files import whole_file
from histocodec.formats.decode.images import MAX_CLASSIC_TIFF, TIFF_SUFFIXES, check_output, resolution_tags
from histocodec.formats.export.ome_xml import ome_xml
from histocodec.formats.export.order import JPEG_QUALITY, Order, Progress
from histocodec.formats.export.tiles import TILE, tiles_of
from histocodec.geometry import Level
from histocodec.slide import Mpp, Pixels, Slide, mpp_at
from histocodec.sources.pyramid import with_pyramid

TIFF_BUFFER = 64 << 20  # bytes of tiles that tifffile collects for its threads; its default is 512 MiB
SUBSAMPLING = (2, 1)  # of JPEG, that is 4:2:2: Bio-Formats converts the colours of YCbCr in 4:4:4 twice, to pink
FULL, REDUCED = 0, 1  # of the tag NewSubfileType; OpenSlide takes no other pages than reduced ones for levels


def write_pyramid(
    path: Path,
    slide: Slide,
    *,
    first_level: int = 0,
    tile: int = TILE,
    compression: str = "jpeg",
    quality: int = int(JPEG_QUALITY),
    mpp: Mpp | None = None,
    history: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a slide's levels, from `first_level` on, as a tiled TIFF that OpenSlide opens (as generic-tiff), and
    replaces what is there. A slide of one level gets derived ones. Memory does not grow with the slide, but for about
    200 bytes for each tile, which tifffile keeps until the level is complete.

    `tile` is the side of a tile in pixels. `compression` is "jpeg", at `quality` and 4:2:2, or a lossless one that
    tifffile knows, such as "deflate". `mpp` stands in for a resolution that the slide does not state. `history` joins
    the description. Raises UsageError, OutputError, and SourceError or FormatError where the slide cannot be read.
    """
    import tifffile

    check_output(path, overwrite=True)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        raise UsageError(f"{path}: a pyramid needs a name that ends in {' or '.join(TIFF_SUFFIXES)}")
    if tile < 16 or tile % 16:
        raise UsageError(f"the side of a TIFF's tiles is {tile}; a multiple of 16 pixels is needed")
    slide, mpp = with_pyramid(slide), slide.mpp or mpp
    if not 0 <= first_level < len(slide.levels):
        raise UsageError(f"{slide.name}: level {first_level} does not exist; it has 0 to {len(slide.levels) - 1}")
    levels = range(first_level, len(slide.levels))
    pages = _Pages(slide, levels, tile, compression, quality, mpp, progress)
    first = slide.levels[first_level]
    with whole_file(path) as file, tifffile.TiffWriter(file, bigtiff=pages.large) as writer:
        for index in levels:
            head = index == first_level
            description = _description(slide, first, mpp, history) if head else None
            pages.write(writer, index, REDUCED if index > first_level else FULL, description=description)


def write_ome_tiff(order: Order) -> None:
    """Writes a slide as an OME-TIFF: level 0 with the others in its SubIFDs, then the associated images, each an image
    of the OME-XML. Replaces what is there. Memory: as `write_pyramid`.

    Raises OutputError, and FormatError where the slide cannot be read.
    """
    import tifffile

    slide = order.slide
    levels = range(len(slide.levels))
    pages = _Pages(slide, levels, TILE, order.codec, int(order.quality or 0), order.mpp, order.progress)
    with whole_file(order.out) as file, tifffile.TiffWriter(file, bigtiff=pages.large, ome=False) as writer:
        for index in levels:
            head = index == 0
            pages.write(
                writer,
                index,
                FULL if head else REDUCED,
                description=ome_xml(order) if head else None,
                subifds=len(levels) - 1 if head else None,
            )
        for pixels in slide.associated.values():
            writer.write(
                pixels, photometric="rgb", compression="deflate", predictor=True, metadata=None, software=False
            )


class _Pages:
    """Writes levels as the pages of a TIFF."""

    def __init__(
        self,
        slide: Slide,
        levels: range,
        tile: int,
        compression: str,
        quality: int,
        mpp: Mpp | None,
        progress: Progress | None,
    ) -> None:
        self.slide, self.tile, self.mpp, self.progress = slide, tile, mpp, progress
        self.compression, self.quality = compression, quality
        self.total, self.done = sum(slide.levels[index].region.area for index in levels), 0

    @property
    def large(self) -> bool:
        """Whether offsets might not fit in 32 bits."""
        return 3 * self.total > MAX_CLASSIC_TIFF

    def write(self, writer: Any, index: int, kind: int, *, description: str | None, subifds: int | None = None) -> None:
        """Appends a level. The page that has a description has the profile, too."""
        level, jpeg = self.slide.levels[index], self.compression == "jpeg"
        resolution = resolution_tags(mpp_at(self.mpp, level.downsample))
        writer.write(
            self._tiles(index),
            shape=(level.height, level.width, 3),
            dtype="uint8",
            photometric="rgb",  # of the tiles; the JPEG encoder converts them to YCbCr itself
            tile=(self.tile, self.tile),
            compression=self.compression,
            compressionargs={"level": self.quality} if jpeg else None,
            subsampling=SUBSAMPLING if jpeg else None,
            predictor=None if jpeg else True,
            subfiletype=kind,
            subifds=subifds,
            description=description,
            iccprofile=self.slide.icc_profile if description is not None else None,
            software="histocodec" if description is not None else False,
            metadata=None,
            buffersize=TIFF_BUFFER,
            resolution=resolution,
            resolutionunit=None if resolution is None else "CENTIMETER",
        )

    def _tiles(self, index: int) -> Iterator[Pixels]:
        for region, pixels in tiles_of(self.slide, index, self.tile):
            self.done += region.area
            if self.progress is not None:
                self.progress(self.done, self.total)
            yield pixels


def _description(slide: Slide, level: Level, mpp: Mpp | None, history: str | None) -> str:
    """The description of the TIFF, with what TIFF has no tags for: microns per pixel, objective power and history."""
    parts, mpp = [f"{level.width}x{level.height}"], mpp_at(mpp, level.downsample)
    if mpp is not None:
        parts.append(f"MPP = {mpp[0]:.6g} x {mpp[1]:.6g}")
    if slide.objective_power is not None:
        parts.append(f"AppMag = {slide.objective_power:g}")
    if history is not None:
        parts.append(history.encode("ascii", "replace").decode())  # all that TIFF's text may hold
    return "histocodec|" + "|".join(parts)
