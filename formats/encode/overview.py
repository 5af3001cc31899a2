"""The overview: the whole slide as a small image, which viewers of OME-Zarr show without this package."""

import numpy as np
from PIL import Image

from histocodec.formats.container.arrays import Form, pack_values
from histocodec.formats.container.attributes import Attributes
from histocodec.formats.encode.options import EncodeOptions
from histocodec.slide import Pixels, Slide
from histocodec.tissue import coarse_view

SIDES = (2048, 1448, 1024, 724, 512, 362, 256, 181, 128, 96)  # pixels, tried in turn; smaller shows nothing
STEP = 8  # grey values, to which an overview above its share is rounded: nobody measures it, and it takes half
METADATA_BYTES = 1200  # of the overview's array and the attribute that describes it


def least_side(attributes: Attributes, options: EncodeOptions) -> int | None:
    """The pixels that the longer side of the overview must have, 0 where a container of a single chunk needs none; None
    where no overview is wanted."""
    grid = attributes.grid(0)
    return options.overview if options.overview is None or grid.chunk_rows * grid.chunk_columns > 1 else 0


def make_overview(slide: Slide, budget: int, least: int | None) -> Pixels | None:
    """The largest view of the slide that takes at most `budget` bytes, or that of `least` pixels on its longer side,
    whatever it takes, if that is larger: (H, W, 3) uint8; None where there is room for neither, and for None."""
    if least is None:
        return None
    level = slide.levels[0]
    longest = max(level.width, level.height)
    view: Pixels | None = None
    for side in sorted({*SIDES, min(least, longest)} - {0}, reverse=True):
        if side > longest or (side == longest and side > least):
            continue
        width, height = (max(1, round(pixels * side / longest)) for pixels in (level.width, level.height))
        if side > least and width * height > 2 * budget:  # stained tissue never packs that well
            continue
        if view is None:
            view = coarse_view(slide)
        small = np.asarray(Image.fromarray(view).resize((width, height), Image.Resampling.BOX))
        if _packed_bytes(small) <= budget:
            return small
        if side <= least:
            rounded = (small.astype(np.uint16) + STEP // 2) // STEP * STEP
            return np.minimum(rounded, 255).astype(np.uint8)
    return None


def least_bytes(slide: Slide, least: int | None) -> int:
    """What the overview takes in a container that has no room for a larger one than it must have."""
    overview = make_overview(slide, 0, least)
    return 0 if overview is None else _packed_bytes(overview) + METADATA_BYTES


def _packed_bytes(image: Pixels) -> int:
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    return len(pack_values(planes, Form(planes.shape, "uint8")))
