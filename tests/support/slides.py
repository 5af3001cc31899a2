"""Synthetic slides, and what tests do with them and their containers."""

from pathlib import Path

import numpy as np

import histocodec
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.formats.encode.encode import encode_slide
from histocodec.geometry import Region
from histocodec.slide import BaseSlide, Pixels
from histocodec.sources import ArraySlide

SIZE = (1300, 900)  # 3 x 2 chunks, and a derived level of 325 x 225
WIDE = (6400, 40)  # two shards beside each other
CHUNK = 512
GLASS = (240, 238, 241)
ICC = b"\0\0\0\x0cnot really one"
PROPERTIES = {"vendor.scanner": "Ω 3", "vendor.lens": ""}


def encoded(slide: BaseSlide, path: str | Path, tiny_file: Path, **options: object) -> histocodec.EncodeReport:
    """Encode with the tiny model on the CPU; `options` are fields of `EncodeOptions`."""
    chosen = histocodec.EncodeOptions(**{"device": "cpu", "model": str(tiny_file), **options})  # type: ignore[arg-type]  # the tests name fields only
    return encode_slide(slide, path, chosen)


def whole(slide: CompressedSlide, level: int = 0) -> Pixels:
    """All pixels of a level: (H, W, 3) uint8."""
    return slide.read(slide.levels[level].region, level)


def crop(pixels: Pixels, region: Region, fill: tuple[int, int, int]) -> Pixels:
    """What reading `region` must give: a crop of a level's `pixels`, and `fill` outside the level."""
    result = np.empty((region.height, region.width, 3), np.uint8)
    result[...] = fill
    inside = region.intersect(Region(0, 0, pixels.shape[1], pixels.shape[0]))
    result[inside.within(region)] = pixels[inside.y : inside.y_end, inside.x : inside.x_end]
    return result


class Rich(ArraySlide):
    """An array with an objective power and associated images."""

    def __init__(self, pixels: Pixels) -> None:
        super().__init__(pixels, name="rich")
        self.objective_power = 40.0
        self.associated = {name: np.full((8, 9, 3), 77, np.uint8) for name in ("label", "macro", "thumbnail")}


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by its path from there."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
