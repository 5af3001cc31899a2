"""OpenSlide's interface to a container, so that code written for openslide-python reads compressed slides unchanged.

Everything here follows from `levels`, `read`, `associated` and `icc_profile`, which `CompressedSlide` has.
"""

import math
import os
from collections.abc import Mapping
from functools import partial

import numpy as np
import openslide
from PIL import Image

from histocodec.errors import UsageError
from histocodec.formats.container.attributes import DERIVED_PROPERTIES, Attributes
from histocodec.formats.container.read import is_container
from histocodec.formats.decode.openslide_errors import SlideClosedError, openslide_errors
from histocodec.geometry import Level, Region, ceil_div
from histocodec.slide import LazyImages, Pixels

THUMBNAIL_PIXELS = 32 << 20  # of a level that a thumbnail is made from at once: in RGBA and copies, about 400 MB
PART = 2048  # pixels of a side of what is averaged at once of a larger level


class OpenSlideFace(openslide.AbstractSlide):
    """The methods of `openslide.OpenSlide`. A subclass adds `name`, `levels`, `read`, `associated`, `icc_profile`,
    `properties` and `closed`.

    It differs where OpenSlide's ways would only surprise: a level that does not exist raises an error instead of
    giving a transparent image, an error does not spoil the reads after it, metadata outlive `close`, and `close` may
    be called twice.
    """

    name: str
    levels: tuple[Level, ...]
    closed: bool

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile of the source, or None where it has none."""
        raise NotImplementedError

    @property
    def _profile(self) -> bytes | None:
        """`icc_profile`, where OpenSlide's own methods look for it."""
        with openslide_errors():
            return self.icc_profile

    @_profile.setter
    def _profile(self, profile: bytes | None) -> None:
        """Nothing: OpenSlide's constructor sets it to None."""

    def read(self, region: Region, level: int) -> Pixels:
        """The pixels (h, w, 3) uint8 of a region in the level's own pixels; see `Slide`."""
        raise NotImplementedError

    @property
    def associated(self) -> Mapping[str, Pixels]:
        """Label, macro and thumbnail as arrays; see `Slide`."""
        raise NotImplementedError

    @classmethod
    def detect_format(cls, filename: str | bytes | os.PathLike[str]) -> str | None:
        """`"histocodec"` where `filename` is a container, else None."""
        return "histocodec" if is_container(filename) else None

    def set_cache(self, cache: openslide.OpenSlideCache) -> None:
        """Uses a cache of the capacity of `cache`, shared with the other slides that are given it, as OpenSlide does.
        Raises TypeError for what is no cache."""
        raise NotImplementedError

    @property
    def level_count(self) -> int:
        """The number of levels."""
        return len(self.levels)

    @property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level in pixels."""
        return tuple((level.width, level.height) for level in self.levels)

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """The downsample of each level."""
        return tuple(level.downsample for level in self.levels)

    @property
    def associated_images(self) -> Mapping[str, Image.Image]:
        """Label, macro and thumbnail as PIL images, decoded at each look-up."""
        images = self.associated

        def picture(name: str) -> Image.Image:
            with openslide_errors():
                self._check_open()
                return Image.fromarray(images[name])

        return LazyImages({name: partial(picture, name) for name in images})

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """The last level before the first that is coarser than `downsample`, as OpenSlide chooses it; 0 where all are
        coarser."""
        coarser = (number for number, level in enumerate(self.levels) if downsample < level.downsample)
        return max(0, next(coarser, len(self.levels)) - 1)

    def level_for_factor(self, factor: float) -> int:
        """The level to resample from, where a pixel is to be `factor` level-0 pixels wide. The factor is a quotient of
        two resolutions, so a level that it misses only by rounding still counts."""
        return self.get_best_level_for_downsample(factor * (1 + 1e-9))

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """An RGBA image of `size` in the level's pixels, from `location` in level-0 pixels; transparent beyond the
        level's edge. A position between two pixels of the level is rounded to the nearer one, where OpenSlide
        interpolates between them: the image is shifted by at most half a pixel of the level, on each axis, and is not
        blurred. Raises UsageError where the level does not exist, the size is negative or the slide is
        closed; all errors are `OpenSlideError`s, too."""
        with openslide_errors():
            region = self._region_at(location, level, size)
            inside = region.intersect(self.levels[level].region)
            if inside == region and not inside.empty:
                image = Image.fromarray(self.read(inside, level)).convert("RGBA")
            else:
                rgba = np.zeros((region.height, region.width, 4), np.uint8)
                if not inside.empty:
                    part = inside.within(region)
                    rgba[(*part, slice(3))] = self.read(inside, level)
                    rgba[(*part, 3)] = 255
                image = Image.fromarray(rgba)
            profile = self.icc_profile
        if profile is not None:
            image.info["icc_profile"] = profile
        return image

    def get_thumbnail(self, size: tuple[int, int]) -> Image.Image:
        """An RGB image of the whole slide, within `size`, as OpenSlide makes it. Where the best level has more than
        THUMBNAIL_PIXELS, it is read in parts that are averaged at once, so that memory does not grow with the slide."""
        width, height = self.levels[0].width, self.levels[0].height
        level = self.levels[self.get_best_level_for_downsample(max(width / size[0], height / size[1]))]
        if level.region.area <= THUMBNAIL_PIXELS:
            return super().get_thumbnail(size)
        # Averaged to about twice the size; Pillow's filter does the rest.
        factor = max(1, round(max(level.width / size[0], level.height / size[1]) / 2))
        with openslide_errors():
            averaged = Image.fromarray(self._averaged(self.levels.index(level), factor))
        whole = (0.0, 0.0, level.width / factor, level.height / factor)  # the last column and row may be parts of one
        thumbnail = averaged.resize(_thumbnail_size(level, size), Image.Resampling.LANCZOS, whole)
        if self.icc_profile is not None:
            thumbnail.info["icc_profile"] = self.icc_profile
        return thumbnail

    def _averaged(self, number: int, factor: int) -> Pixels:
        """A level of which each factor × factor pixels are averaged: (⌈h / factor⌉, ⌈w / factor⌉, 3) uint8."""
        level = self.levels[number]
        rows, columns = ceil_div(level.height, factor), ceil_div(level.width, factor)
        sums = np.zeros((rows, columns, 3), np.float32)
        for y in range(0, level.height, PART):
            for x in range(0, level.width, PART):
                part = Region(x, y, PART, PART).intersect(level.region)
                sums_of_part, top, left = self.read(part, number), y // factor, x // factor
                for axis, (start, end) in enumerate(((part.y, part.y_end), (part.x, part.x_end))):
                    edges = np.arange(start // factor * factor, end, factor)
                    starts = np.maximum(edges, start) - start
                    sums_of_part = np.add.reduceat(sums_of_part, starts, axis=axis, dtype=np.uint32)  # below 2^30
                sums[top : top + sums_of_part.shape[0], left : left + sums_of_part.shape[1]] += sums_of_part
        heights = np.minimum(factor, level.height - factor * np.arange(rows))
        widths = np.minimum(factor, level.width - factor * np.arange(columns))
        sums /= heights[:, None, None] * widths[:, None].astype(np.float32)
        return np.rint(sums, out=sums).astype(np.uint8)

    def _region_at(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Region:
        """The region in the level's pixels that OpenSlide's `location` (level-0 pixels) and `size` (level's) name."""
        downsample = self.levels[self._checked_level(level)].downsample
        return Region(round(location[0] / downsample), round(location[1] / downsample), *size)

    def _checked_level(self, level: int) -> int:
        """The level, where it exists and the slide is open."""
        self._check_open()
        if not 0 <= level < len(self.levels):
            raise UsageError(f"{self.name}: level {level} does not exist; it has 0 to {len(self.levels) - 1}")
        return level

    def _check_open(self) -> None:
        if self.closed:
            raise SlideClosedError(f"{self.name}: is closed; open it again to read from it")


def _thumbnail_size(level: Level, size: tuple[int, int]) -> tuple[int, int]:
    """The largest size within `size` that has the level's shape, rounded as `Image.thumbnail` does."""
    width, height = math.floor(size[0]), math.floor(size[1])
    if width >= level.width and height >= level.height:
        return level.width, level.height
    shape = level.width / level.height
    if width / height >= shape:
        around = (math.floor(height * shape), math.ceil(height * shape))
        return max(1, min(around, key=lambda n: abs(shape - n / height))), height
    around = (math.floor(width / shape), math.ceil(width / shape))
    return width, max(1, min(around, key=lambda n: abs(shape - width / n) if n else 0.0))


def openslide_properties(attributes: Attributes) -> Mapping[str, str]:
    """The source's properties, word for word, and OpenSlide's own, which speak of the container: its levels, tiles of
    a chunk's size, associated images, resolution, objective power and ICC profile."""
    properties = {k: v for k, v in attributes.properties.items() if not k.startswith(DERIVED_PROPERTIES)}
    properties.setdefault(openslide.PROPERTY_NAME_VENDOR, attributes.source.vendor)
    properties["openslide.level-count"] = str(len(attributes.levels))
    for number, level in enumerate(attributes.levels):
        facts = {
            "downsample": f"{level.downsample:.17g}",
            "width": level.width,
            "height": level.height,
            "tile-width": attributes.chunk_side,
            "tile-height": attributes.chunk_side,
        }
        properties |= {f"openslide.level[{number}].{name}": str(value) for name, value in facts.items()}
    for name, (width, height) in attributes.associated.items():
        properties[f"openslide.associated.{name}.width"] = str(width)
        properties[f"openslide.associated.{name}.height"] = str(height)
    if attributes.icc is not None:
        properties["openslide.icc-size"] = str(attributes.icc)
    if attributes.mpp is not None:
        properties[openslide.PROPERTY_NAME_MPP_X] = str(attributes.mpp[0])
        properties[openslide.PROPERTY_NAME_MPP_Y] = str(attributes.mpp[1])
    if attributes.objective_power is not None:
        properties[openslide.PROPERTY_NAME_OBJECTIVE_POWER] = f"{attributes.objective_power:g}"
    return dict(sorted(properties.items()))
