"""Where the tissue is: the colour of the background, what counts as background, and a coarse mask of tissue.

Background is bare glass without tissue.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.geometry import Grid, Level, Region
from histocodec.kernels.jit import jit
from histocodec.slide import WHITE, Colour, Pixels, Slide

Mask = NDArray[np.bool_]  # (h, w)

# Largest difference from the background colour in any channel that still counts as background. On a JPEG-compressed
# section (a pale pink background, mode 234, 217, 233), 99.9 % of the pixels of each clean background tile lie within 7
# to 12 of the mode: noise, JPEG and the objective's shading together. Eosin that ran out of the tissue differs by 16 to
# 22, and the faintest fibres by more.
BACKGROUND_DISTANCE = 12

LONGEST = 2048  # pixels: the longer side of the plane in which masks are made
BRIGHT = 180  # background is at least this bright in every channel …
GREY = 40  # … and its channels differ by no more than this
LEAST_BACKGROUND = 0.005  # of all pixels: fewer bright ones are lumina, not background
ALIGNED_SHARE = (
    0.1  # of what is coded: with less background, an exact one is not worth statistics that are a little off
)
BIN_BITS = 2  # the mode is sought among colours rounded to 4 grey values, so that noise cannot split it
# Optical densities between which the threshold of tissue has to lie. Below, Otsu would split noise from noise on a
# blank slide; above, dark tissue from pale where there is little background. Pale collagen starts at about 0.1.
LOWEST_THRESHOLD = 0.05
HIGHEST_THRESHOLD = 0.08


def mask_level(slide: Slide, longest: int = LONGEST) -> int:
    """The finest level whose longer side is at most `longest` pixels, else the coarsest level."""
    for index, level in enumerate(slide.levels):
        if max(level.width, level.height) <= longest:
            return index
    return len(slide.levels) - 1


def estimate_background(slide: Slide, view: Pixels | None = None) -> Colour:
    """The background colour: the one that the slide declares, else the commonest bright and nearly grey colour of a
    coarse level, else white. `view` is the slide's `coarse_view`, where the caller has it already."""
    if slide.background is not None:
        return slide.background
    return background_of(coarse_view(slide) if view is None else view)


def background_of(pixels: Pixels) -> Colour:
    """The commonest bright and nearly grey colour of pixels (H, W, 3), as the mean of its neighbourhood; white where
    there is hardly any."""
    pixels = _prepared(pixels)
    bins = _bright_bins(pixels)
    if bins.sum() < max(1, LEAST_BACKGROUND * pixels.shape[0] * pixels.shape[1]):
        return WHITE
    lowest = np.array(np.unravel_index(bins.argmax(), bins.shape)) << BIN_BITS
    commonest = _bright_mean(pixels, lowest, lowest + (1 << BIN_BITS) - 1)
    # Once more around that mean: the mean of a bin alone is off by up to half the bin.
    reach = 1 << BIN_BITS
    mean = _bright_mean(pixels, np.ceil(commonest - reach).astype(int), np.floor(commonest + reach).astype(int))
    mean_red, mean_green, mean_blue = np.floor(mean + 0.5).astype(int).tolist()
    return mean_red, mean_green, mean_blue


def is_background(pixels: Pixels, background: Colour, *, distance: int = BACKGROUND_DISTANCE) -> bool:
    """Whether every pixel is within `distance` of the background colour in every channel. A single speck of dust makes
    it False, since what is skipped is lost."""
    return bool(background_mask(pixels, background, distance=distance).all())


def background_mask(pixels: Pixels, background: Colour, *, distance: int = BACKGROUND_DISTANCE) -> Mask:
    """True where a pixel is within `distance` of the background colour in every channel: (H, W, 3) → (H, W)."""
    colour = np.array(background)
    return np.asarray(_in_box(_prepared(pixels), colour - distance, colour + distance))


def coarse_view(slide: Slide, longest: int = LONGEST) -> Pixels:
    """The whole slide, small: its `mask_level`, thinned further where that is longer than `longest` pixels. It is read
    in strips, so that a slide without reduced levels costs time but no memory. Raises SourceError."""
    index = mask_level(slide, longest)
    level = slide.levels[index]
    step = max(1, -(-max(level.width, level.height) // longest))
    strip = max(step, 1024 // step * step)
    rows = [
        slide.read(Region(0, y, level.width, min(strip, level.height - y)), index)[::step, ::step]
        for y in range(0, level.height, strip)
    ]
    return np.concatenate(rows)


def tissue_mask(slide: Slide, background: Colour | None = None, *, longest: int = LONGEST) -> Mask:
    """True where the slide shows tissue: a mask of the whole slide, at most `longest` on a side. It serves statistics
    and views, and must not decide what may be skipped. Raises SourceError."""
    pixels = coarse_view(slide, longest)
    return stained(pixels, background or slide.background or background_of(pixels))


def stained(pixels: Pixels, background: Colour) -> Mask:
    """True where the optical density relative to the background, averaged over the channels, is above Otsu's threshold:
    (H, W, 3) → (H, W)."""
    values = np.maximum(np.arange(256, dtype=np.float32), 1)
    table = np.stack([-np.log10(values / max(colour, 1)) for colour in background])
    density, counts = _densities(_prepared(pixels), table)
    return np.asarray(density > min(max(otsu_threshold(counts), LOWEST_THRESHOLD), HIGHEST_THRESHOLD))


def otsu_threshold(counts: NDArray[np.int64]) -> float:
    """The threshold in 0 … 1 that splits values into two classes of the least variance within (Otsu 1979). `counts` is
    their histogram over equal parts of that range."""
    edges = np.linspace(0, 1, len(counts) + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    moment = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        squared_distance = (moment / below - (moment[-1] - moment) / above) ** 2
    between = np.where((below > 0) & (above > 0), below * above * squared_distance, 0.0)
    return float(edges[int(between.argmax()) + 1])


def background_share(view: Pixels, level: Level, background: Colour, *, side: int) -> float:
    """How much background there is where something is coded, 0 … 1: in the squares of `side` pixels of `level` that are
    not background throughout. Estimated on `view`, a `coarse_view`."""
    mask = background_mask(view, background)
    grid = Grid(level.height, level.width, side)
    count = total = 0
    for square in grid.squares_in(level.region):
        part = mask_part(mask, level, grid.region(*square))
        if not part.all():
            count, total = count + int(part.sum()), total + part.size
    return count / max(1, total)


def mask_part(mask: Mask, level: Level, region: Region) -> Mask:
    """The part of a whole-slide mask that covers a region of `level`; at least one element."""
    down, across = mask.shape[0] / level.height, mask.shape[1] / level.width
    top, left = int(region.y * down), int(region.x * across)
    bottom = max(top + 1, int(np.ceil(region.y_end * down)))
    right = max(left + 1, int(np.ceil(region.x_end * across)))
    return mask[top:bottom, left:right]


def busiest_region(slide: Slide, side: int) -> Region:
    """The square of `side` pixels of level 0 with the most tissue, at a multiple of half its side; of a slide that is
    smaller, all. Raises SourceError."""
    level, mask = slide.levels[0], tissue_mask(slide)
    best, most = Region(0, 0, side, side).intersect(level.region), -1.0
    for y in range(0, max(1, level.height - side + 1), side // 2):
        for x in range(0, max(1, level.width - side + 1), side // 2):
            region = Region(x, y, side, side).intersect(level.region)
            share = float(np.mean(mask_part(mask, level, region)))
            # Among squares that are full, the one nearest to the middle: edges of a section are folded.
            middle = abs(x + side / 2 - level.width / 2) + abs(y + side / 2 - level.height / 2)
            score = share - 1e-3 * middle / (level.width + level.height)
            if score > most:
                best, most = region, score
    return best


def _prepared(pixels: Pixels) -> Pixels:
    """The pixels as the kernels were compiled for: contiguous and read-only."""
    view = np.ascontiguousarray(pixels).view()
    view.flags.writeable = False
    return view


# The kernels: numpy takes several times as long over an axis of three.


@jit
def _is_bright_grey(red: Any, green: Any, blue: Any) -> bool:
    darkest, brightest = min(red, green, blue), max(red, green, blue)
    return bool(darkest >= BRIGHT and brightest - darkest <= GREY)


@jit
def _bright_bins(pixels: Pixels) -> NDArray[np.int64]:
    """How many bright grey pixels have each colour, without its last BIN_BITS bits: (64, 64, 64)."""
    side = 256 >> BIN_BITS
    bins = np.zeros((side, side, side), np.int64)
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            red, green, blue = pixels[i, j, 0], pixels[i, j, 1], pixels[i, j, 2]
            if _is_bright_grey(red, green, blue):
                bins[red >> BIN_BITS, green >> BIN_BITS, blue >> BIN_BITS] += 1
    return bins


@jit
def _bright_mean(pixels: Pixels, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean colour (3,) of bright grey pixels that lie from `low` to `high` in each channel."""
    sums, count = np.zeros(3, np.int64), 0
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            red, green, blue = pixels[i, j, 0], pixels[i, j, 1], pixels[i, j, 2]
            inside = low[0] <= red <= high[0] and low[1] <= green <= high[1] and low[2] <= blue <= high[2]
            if inside and _is_bright_grey(red, green, blue):
                sums[0] += red
                sums[1] += green
                sums[2] += blue
                count += 1
    return sums / count


@jit
def _in_box(pixels: Pixels, low: NDArray[np.int64], high: NDArray[np.int64]) -> Mask:
    """True where every channel lies from `low` to `high`."""
    mask = np.empty(pixels.shape[:2], np.bool_)
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            inside = True
            for channel in range(3):
                inside &= low[channel] <= pixels[i, j, channel] <= high[channel]
            mask[i, j] = inside
    return mask


@jit
def _densities(pixels: Pixels, table: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The optical density of each pixel, averaged over the channels and limited to 0 … 1, (H, W), and its histogram in
    256 equal parts. `table` (3, 256) has the density of each value of each channel."""
    density, counts = np.empty(pixels.shape[:2], np.float32), np.zeros(256, np.int64)
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            total = table[0, pixels[i, j, 0]] + table[1, pixels[i, j, 1]] + table[2, pixels[i, j, 2]]
            value = min(max(total / np.float32(3), np.float32(0)), np.float32(1))
            density[i, j] = value
            counts[min(int(value * 256), 255)] += 1
    return density, counts
