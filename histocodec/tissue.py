"""Where the specimen is: the colour of bare glass, what counts as glass, and a coarse mask of tissue."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.geometry import Grid, Level, Region
from histocodec.kernels.jit import jit
from histocodec.slide import WHITE, Colour, Pixels, Slide

Mask = NDArray[np.bool_]

# Largest difference in any channel that is still bare glass. On a JPEG-compressed section (a pale pink
# glass, mode 234, 217, 233), 99.9 % of the pixels of each clean glass tile lie within 7 to 12 of the mode,
# from noise, JPEG and the objective's shading together; eosin that ran out of the tissue differs by 16
# to 22, and the faintest fibres by more.
GLASS_DISTANCE = 12

LONGEST = 2048  # of the plane in which masks are made
BRIGHT = 180  # glass is at least this bright in every channel ...
GREY = 40  # ... and its channels differ by no more than this
LEAST_GLASS = 0.005  # of all pixels: fewer bright ones are lumina, not glass
ALIGNED_GLASS = 0.1  # of what is coded: below, decoding glass exactly is not worth statistics that are a little off
BIN_BITS = 2  # the mode is sought among colours rounded to 4 grey values, so that noise cannot split it
# Optical densities between which the threshold has to lie. Below, Otsu would split noise from noise on a
# blank slide; above, dark tissue from pale where there is little glass. Pale collagen starts at about 0.1.
LOWEST_THRESHOLD = 0.05
HIGHEST_THRESHOLD = 0.08


def mask_level(slide: Slide, longest: int = LONGEST) -> int:
    """The finest level whose longer side is at most `longest`, else the coarsest."""
    for index, level in enumerate(slide.levels):
        if max(level.width, level.height) <= longest:
            return index
    return len(slide.levels) - 1


def estimate_background(slide: Slide, view: Pixels | None = None) -> Colour:
    """The colour of bare glass: as declared, else the commonest bright and nearly grey colour of a low
    level, else white. `view` is the slide's `coarse_view`, where it is at hand."""
    if slide.background is not None:
        return slide.background
    return background_of(coarse_view(slide) if view is None else view)


def background_of(pixels: Pixels) -> Colour:
    """The commonest bright, nearly grey colour, as the mean of its neighbourhood; white where there is
    hardly any."""
    pixels = _whole(pixels)
    bins = _glass_bins(pixels)
    if bins.sum() < max(1, LEAST_GLASS * pixels.shape[0] * pixels.shape[1]):
        return WHITE
    lowest = np.array(np.unravel_index(bins.argmax(), bins.shape)) << BIN_BITS
    commonest = _glass_mean(pixels, lowest, lowest + (1 << BIN_BITS) - 1)
    # Once more among all within reach: the mean of a bin alone is off by up to half the bin.
    reach = 1 << BIN_BITS
    near = _glass_mean(pixels, np.ceil(commonest - reach).astype(int), np.floor(commonest + reach).astype(int))
    mean_red, mean_green, mean_blue = np.floor(near + 0.5).astype(int).tolist()
    return mean_red, mean_green, mean_blue


def is_background(pixels: Pixels, background: Colour, *, distance: int = GLASS_DISTANCE) -> bool:
    """True only where every pixel is within `distance` of the background in every channel. One speck of
    dust makes it False: what is skipped is lost."""
    return bool(bare(pixels, background, distance=distance).all())


def bare(pixels: Pixels, background: Colour, *, distance: int = GLASS_DISTANCE) -> Mask:
    """True where a pixel is within `distance` of the background in every channel."""
    colour = np.array(background)
    return np.asarray(_in_box(_whole(pixels), colour - distance, colour + distance))


def coarse_view(slide: Slide, longest: int = LONGEST) -> Pixels:
    """The whole slide, small: a low level, thinned further where even that is larger than `longest`. Read
    in strips, so a slide without reduced levels costs time but no memory."""
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
    """(h, w) bool over the whole slide, at most `longest` on a side: True where there is more stain than
    glass, by Otsu's threshold on the optical density. For statistics and views, not for deciding what may
    be dropped."""
    pixels = coarse_view(slide, longest)
    return stained(pixels, background or slide.background or background_of(pixels))


def stained(pixels: Pixels, background: Colour) -> Mask:
    """True where the optical density relative to the glass, averaged over the channels, is above Otsu's
    threshold."""
    values = np.maximum(np.arange(256, dtype=np.float32), 1)
    density, counts = _densities(_whole(pixels), np.stack([-np.log10(values / max(c, 1)) for c in background]))
    return np.asarray(density > min(max(otsu(counts), LOWEST_THRESHOLD), HIGHEST_THRESHOLD))


def otsu(counts: NDArray[np.int64]) -> float:
    """The threshold in 0 … 1 that splits values into two classes of the least variance within; of the values, how many
    lie in each of so many equal parts of that range."""
    edges = np.linspace(0, 1, len(counts) + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    moment = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (moment / below - (moment[-1] - moment) / above) ** 2
    between = np.where((below > 0) & (above > 0), below * above * apart, 0.0)
    return float(edges[int(between.argmax()) + 1])


def glass_share(view: Pixels, level: Level, background: Colour, *, side: int) -> float:
    """How much of the squares of `level` that are not glass throughout is glass all the same, 0 … 1, by a view of
    the whole."""
    glass = bare(view, background)
    grid = Grid(level.height, level.width, side)
    found = total = 0
    for block in grid.squares_in(level.region):
        cell = cell_of(glass, level, grid.region(*block))
        if not cell.all():
            found, total = found + int(cell.sum()), total + cell.size
    return found / max(1, total)


def cell_of(mask: Mask, level: Level, region: Region) -> Mask:
    """The part of a whole-slide mask that covers a region of `level`, at least one cell."""
    down, across = mask.shape[0] / level.height, mask.shape[1] / level.width
    top, left = int(region.y * down), int(region.x * across)
    bottom = max(top + 1, int(np.ceil(region.y_end * down)))
    right = max(left + 1, int(np.ceil(region.x_end * across)))
    return mask[top:bottom, left:right]


def busiest_region(slide: Slide, side: int) -> Region:
    """The square of level 0 with the most tissue in it, at multiples of half its side; smaller slides whole."""
    level, mask = slide.levels[0], tissue_mask(slide)
    best, most = Region(0, 0, side, side).intersect(level.region), -1.0
    for y in range(0, max(1, level.height - side + 1), side // 2):
        for x in range(0, max(1, level.width - side + 1), side // 2):
            region = Region(x, y, side, side).intersect(level.region)
            share = float(np.mean(cell_of(mask, level, region)))
            # Among squares that are full, the one nearest to the middle: edges of a section are folded.
            middle = abs(x + side / 2 - level.width / 2) + abs(y + side / 2 - level.height / 2)
            score = share - 1e-3 * middle / (level.width + level.height)
            if score > most:
                best, most = region, score
    return best


def _whole(pixels: Pixels) -> Pixels:
    """As the kernels were compiled for: contiguous, and read-only."""
    whole = np.ascontiguousarray(pixels).view()
    whole.flags.writeable = False
    return whole


# The kernels: numpy takes several times as long over an axis of three.


@jit
def _is_glass(red: Any, green: Any, blue: Any) -> bool:
    darkest, brightest = min(red, green, blue), max(red, green, blue)
    return bool(darkest >= BRIGHT and brightest - darkest <= GREY)


@jit
def _glass_bins(pixels: Pixels) -> NDArray[np.int64]:
    """How many pixels that could be glass have each colour, less its last BIN_BITS bits."""
    side = 256 >> BIN_BITS
    bins = np.zeros((side, side, side), np.int64)
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            red, green, blue = pixels[i, j, 0], pixels[i, j, 1], pixels[i, j, 2]
            if _is_glass(red, green, blue):
                bins[red >> BIN_BITS, green >> BIN_BITS, blue >> BIN_BITS] += 1
    return bins


@jit
def _glass_mean(pixels: Pixels, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean colour of pixels that could be glass, from `low` to `high` in each channel."""
    sums, count = np.zeros(3, np.int64), 0
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            red, green, blue = pixels[i, j, 0], pixels[i, j, 1], pixels[i, j, 2]
            inside = low[0] <= red <= high[0] and low[1] <= green <= high[1] and low[2] <= blue <= high[2]
            if inside and _is_glass(red, green, blue):
                sums[0] += red
                sums[1] += green
                sums[2] += blue
                count += 1
    return sums / count


@jit
def _in_box(pixels: Pixels, low: NDArray[np.int64], high: NDArray[np.int64]) -> Mask:
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
    """The optical density of each pixel, averaged over the channels, within 0 … 1; `table` (3, 256) has that of each
    value. And how many pixels lie in each of 256 equal parts of that range."""
    density, counts = np.empty(pixels.shape[:2], np.float32), np.zeros(256, np.int64)
    for i in range(pixels.shape[0]):
        for j in range(pixels.shape[1]):
            total = table[0, pixels[i, j, 0]] + table[1, pixels[i, j, 1]] + table[2, pixels[i, j, 2]]
            value = min(max(total / np.float32(3), np.float32(0)), np.float32(1))
            density[i, j] = value
            counts[min(int(value * 256), 255)] += 1
    return density, counts
