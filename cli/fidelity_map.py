"""The fidelity map as a picture: what `info --map` draws. Needs neither torch nor the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from histocodec.formats.container.layout import BACKGROUND, LOSSLESS
from histocodec.formats.container.read import Container
from histocodec.picture import GAP, INK, MARGIN, NOTE_SIZE, PAPER
from histocodec.slide import Colour, Pixels

LONGEST = 1200  # pixels of the map's longer side
LEAST_WIDTH = 700  # of the sheet, which the legend needs
BAR = (260, 18)  # of the colour scale, in pixels
TINT = 0.7  # of a chunk's colour over the grey overview, whose tissue stays visible
# From low to high, with equal steps for the eye and for those who cannot tell red from green; no tissue has these.
SCALE = np.array([(165, 0, 38), (244, 109, 67), (254, 224, 144), (171, 217, 233), (69, 117, 180), (49, 54, 149)])
LOSSLESS_COLOUR: Colour = (0, 150, 90)  # not on the scale
UNMEASURED: Colour = (128, 128, 128)


@dataclass(frozen=True)
class Range:
    """What the ends of the colour scale stand for, in whole dB."""

    low: int
    high: int

    @classmethod
    def of(cls, psnr: NDArray[np.float32]) -> "Range":
        finite = psnr[np.isfinite(psnr)]
        if not finite.size:
            return cls(0, 1)
        low = math.floor(finite.min())
        return cls(low, max(low + 1, math.ceil(finite.max())))

    def colours(self, psnr: NDArray[np.floating]) -> NDArray[np.uint8]:
        """(…,) dB → (…, 3)"""
        share = np.clip((psnr - self.low) / (self.high - self.low), 0, 1) * (len(SCALE) - 1)
        channels = [np.interp(share, np.arange(len(SCALE)), SCALE[:, c]) for c in range(3)]
        return np.stack(channels, axis=-1).round().astype(np.uint8)


def fidelity_map(container: Container) -> Pixels:
    """PSNR of each chunk of level 0 over the overview, and below it what the colours mean."""
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
    """(rows, columns, 3) the colour of each chunk; of background any."""
    colours = span.colours(np.nan_to_num(psnr, nan=span.low, posinf=span.high))
    colours[np.isnan(psnr)] = UNMEASURED
    colours[tiles == LOSSLESS] = LOSSLESS_COLOUR
    return colours


def _with_legend(picture: Pixels, span: Range, chunk: str) -> Pixels:
    height, width, _ = picture.shape
    below = MARGIN + BAR[1] + GAP + NOTE_SIZE + MARGIN
    sheet = Image.new("RGB", (2 * MARGIN + max(width, LEAST_WIDTH), MARGIN + height + below), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(NOTE_SIZE)
    sheet.paste(Image.fromarray(picture), (MARGIN, MARGIN))
    draw.rectangle((MARGIN - 1, MARGIN - 1, MARGIN + width, MARGIN + height), outline=INK)
    x, y = MARGIN, 2 * MARGIN + height
    bar = span.colours(np.linspace(span.low, span.high, BAR[0]))
    sheet.paste(Image.fromarray(np.repeat(bar[None], BAR[1], axis=0)), (x, y))
    draw.rectangle((x - 1, y - 1, x + BAR[0], y + BAR[1]), outline=INK)
    for place, text, anchor in _ticks(span):
        draw.text((x + place, y + BAR[1] + GAP), text, INK, font, anchor=anchor)
    x += BAR[0] + MARGIN
    draw.text((x, y + BAR[1] // 2), f"dB of {chunk} pixels", INK, font, anchor="lm")
    x += round(draw.textlength(f"dB of {chunk} pixels", font)) + 2 * MARGIN
    for colour, name in ((LOSSLESS_COLOUR, "lossless"), (PAPER, "glass, left out")):
        draw.rectangle((x, y, x + BAR[1], y + BAR[1]), colour, INK)
        draw.text((x + BAR[1] + GAP, y + BAR[1] // 2), name, INK, font, anchor="lm")
        x += BAR[1] + GAP + round(draw.textlength(name, font)) + MARGIN
    return np.asarray(sheet)


def _ticks(span: Range) -> Sequence[tuple[int, str, str]]:
    """Where on the bar, what, and how it is aligned."""
    middle = (span.low + span.high) / 2
    return (0, str(span.low), "la"), (BAR[0] // 2, f"{middle:g}", "ma"), (BAR[0], str(span.high), "ra")
