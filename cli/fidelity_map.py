"""The fidelity map as a picture, as `info --map` draws it. Needs neither torch nor the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.states import BACKGROUND, LOSSLESS
from histocodec.picture import GAP, INK, MARGIN, NOTE_SIZE, PAPER
from histocodec.slide import Colour, Pixels

LONGEST = 1200  # pixels of the map's longer side
MOST_DECIBELS = 200  # of the colour scale. What is measured ends near 113 dB, but a container may state any value
MIN_WIDTH = 700  # pixels; the legend needs them
BAR = (260, 18)  # width and height of the colour scale, in pixels
TINT = 0.7  # opacity of a chunk's colour over the grey overview, so that tissue stays visible
# From low to high, in steps that look equal, also to those who cannot tell red from green. No tissue has these colours.
SCALE = np.array([(165, 0, 38), (244, 109, 67), (254, 224, 144), (171, 217, 233), (69, 117, 180), (49, 54, 149)])
LOSSLESS_COLOUR: Colour = (0, 150, 90)  # not on the scale
UNMEASURED: Colour = (128, 128, 128)


@dataclass(frozen=True)
class Range:
    """The PSNR at the two ends of the colour scale, in whole dB."""

    low: int
    high: int

    @classmethod
    def of(cls, psnr: NDArray[np.float32]) -> "Range":
        """Return the range of the finite values of a map, which may hold NaN and infinities, up to MOST_DECIBELS."""
        finite = psnr[np.isfinite(psnr)]
        if not finite.size:
            return cls(0, 1)
        low = math.floor(min(finite.min(), MOST_DECIBELS - 1))
        return cls(low, max(low + 1, math.ceil(min(finite.max(), MOST_DECIBELS))))

    def colours(self, psnr: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Map PSNR to colours: (…,) dB → (…, 3) uint8 RGB. Values out of range get the colour of the nearer end."""
        share = np.clip((psnr - self.low) / (self.high - self.low), 0, 1) * (len(SCALE) - 1)
        channels = [np.interp(share, np.arange(len(SCALE)), SCALE[:, c]) for c in range(3)]
        return np.stack(channels, axis=-1).round().astype(np.uint8)


def fidelity_map(container: Container) -> Pixels:
    """Draw the PSNR of each chunk of level 0 over the overview, with a legend below: (H, W, 3) uint8 RGB.

    Raises FormatError where the container's maps are damaged.
    """
    tiles, psnr, level = container.tiles(0), container.psnr(0), container.attributes.levels[0]
    span = Range.of(psnr)
    scale = LONGEST / max(level.width, level.height)
    width, height = max(1, round(level.width * scale)), max(1, round(level.height * scale))
    overview = container.overview()
    base, strength = np.full((height, width, 3), container.attributes.background.colour, np.uint8), 1.0
    if overview is not None:
        base, strength = np.asarray(Image.fromarray(overview).resize((width, height)).convert("L").convert("RGB")), TINT
    side = container.attributes.chunk * container.attributes.model.stride
    rows = ((np.arange(height) + 0.5) * level.height / height).astype(int) // side
    columns = ((np.arange(width) + 0.5) * level.width / width).astype(int) // side
    colours = chunk_colours(tiles, psnr, span)[rows[:, None], columns]
    tint = np.where(tiles == BACKGROUND, 0, strength)[rows[:, None], columns, None]
    return _with_legend((base * (1 - tint) + colours * tint).round().astype(np.uint8), span, f"{side} x {side}")


def chunk_colours(tiles: NDArray[np.uint8], psnr: NDArray[np.float32], span: Range) -> NDArray[np.uint8]:
    """Return the colour of each chunk, (rows, columns, 3) uint8; that of background chunks means nothing."""
    colours = span.colours(np.nan_to_num(psnr, nan=span.low, posinf=span.high))
    colours[np.isnan(psnr)] = UNMEASURED
    colours[tiles == LOSSLESS] = LOSSLESS_COLOUR
    return colours


def _with_legend(picture: Pixels, span: Range, chunk: str) -> Pixels:
    height, width, _ = picture.shape
    below = MARGIN + BAR[1] + GAP + NOTE_SIZE + MARGIN
    sheet = Image.new("RGB", (2 * MARGIN + max(width, MIN_WIDTH), MARGIN + height + below), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(NOTE_SIZE)
    sheet.paste(Image.fromarray(picture), (MARGIN, MARGIN))
    draw.rectangle((MARGIN - 1, MARGIN - 1, MARGIN + width, MARGIN + height), outline=INK)
    x, y = MARGIN, 2 * MARGIN + height
    bar = span.colours(np.linspace(span.low, span.high, BAR[0]))
    sheet.paste(Image.fromarray(np.repeat(bar[None], BAR[1], axis=0)), (x, y))
    draw.rectangle((x - 1, y - 1, x + BAR[0], y + BAR[1]), outline=INK)
    for offset, text, anchor in _ticks(span):
        draw.text((x + offset, y + BAR[1] + GAP), text, INK, font, anchor=anchor)
    x += BAR[0] + MARGIN
    draw.text((x, y + BAR[1] // 2), f"dB of {chunk} pixels", INK, font, anchor="lm")
    x += round(draw.textlength(f"dB of {chunk} pixels", font)) + 2 * MARGIN
    for colour, name in ((LOSSLESS_COLOUR, "lossless"), (PAPER, "background, skipped")):
        draw.rectangle((x, y, x + BAR[1], y + BAR[1]), colour, INK)
        draw.text((x + BAR[1] + GAP, y + BAR[1] // 2), name, INK, font, anchor="lm")
        x += BAR[1] + GAP + round(draw.textlength(name, font)) + MARGIN
    return np.asarray(sheet)


def _ticks(span: Range) -> Sequence[tuple[int, str, str]]:
    """Return each tick's position on the bar, its text, and the anchor of the text."""
    middle = (span.low + span.high) / 2
    return (0, str(span.low), "la"), (BAR[0] // 2, f"{middle:g}", "ma"), (BAR[0], str(span.high), "ra")
