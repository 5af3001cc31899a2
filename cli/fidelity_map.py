"""The fidelity map as a picture, as `info --map` draws it and `serve` shows it. Needs neither torch nor the model.

Its colours are absolute: the same error has the same colour on every slide. `cli/viewer/README.md` says what the steps
mean, and how that was judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from histocodec.fidelity import PEAK_SQUARED
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.states import BACKGROUND, LOSSLESS
from histocodec.picture import GAP, INK, MARGIN, NOTE_SIZE, PAPER
from histocodec.slide import Colour, Pixels

Measure = Literal["psnr", "block"]  # of a chunk as a whole; of the worst of its blocks of 16 × 16 pixels

MEASURES: tuple[Measure, ...] = ("psnr", "block")
TITLES: dict[Measure, str] = {"psnr": "PSNR of each chunk", "block": "worst block of 16 x 16 in each chunk"}
LONGEST = 1200  # pixels of the map's longer side
MIN_WIDTH = 700  # pixels; the legend needs them
SWATCH = 18  # pixels
TINT = 0.5  # opacity of a chunk's colour over the picture, so that tissue stays visible
UNMEASURED: Colour = (128, 128, 128)


@dataclass(frozen=True)
class Step:
    """A step of the scale: the dB from which on it holds, up to the next, its colour, and what it means."""

    decibels: float
    colour: Colour
    meaning: str


# From low to high, in colours that those who cannot tell red from green tell apart, and that no tissue has. The limits
# are where a model of the eye sees colour differences of 5, 3.5, 2.3, 1.7 and 1 in half of the blocks with this error:
# `benchmarks.studies.visible`.
STEPS = (
    Step(-np.inf, (165, 0, 38), "plain at first sight"),
    Step(26.0, (244, 109, 67), "clearly visible"),
    Step(29.0, (254, 200, 60), "visible side by side"),
    Step(32.0, (145, 205, 230), "visible when swiped"),
    Step(38.0, (69, 117, 180), "hardly visible"),
    Step(46.0, (49, 54, 149), "not visible"),
)
LOSSLESS_STEP = Step(np.inf, (0, 150, 90), "lossless")


def decibels(container: Container, level: int, measure: Measure) -> NDArray[np.float32]:
    """The fidelity of each chunk of a level in dB, (rows, columns) float32: infinite where nothing was lost, NaN where
    nothing was measured. Raises FormatError where the maps are damaged."""
    if measure == "psnr":
        return container.psnr(level)
    error = container.block_error(level)
    if error is None:  # containers of version 1 may have none
        return np.full(container.tiles(level).shape, np.nan, np.float32)
    return block_decibels(error)


def block_decibels(error: NDArray[np.floating]) -> NDArray[np.float32]:
    """RMS errors in grey values as dB: the PSNR of the block alone."""
    with np.errstate(divide="ignore", over="ignore"):
        values: NDArray[np.float64] = 10 * np.log10(PEAK_SQUARED / np.square(error, dtype=np.float64))
    return values.astype(np.float32)


def colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Map dB to the colours of the scale: (…,) → (…, 3) uint8 RGB; NaN is grey, infinity lossless."""
    table = np.array([*(step.colour for step in STEPS), LOSSLESS_STEP.colour, UNMEASURED], np.uint8)
    number = np.searchsorted([step.decibels for step in STEPS[1:]], np.nan_to_num(values, nan=0.0), side="right")
    number = np.where(np.isposinf(values), len(STEPS), number)
    return table[np.where(np.isnan(values), len(STEPS) + 1, number)]


def chunk_colours(tiles: NDArray[np.uint8], values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The colour of each chunk and whether it has one, (rows, columns, 4) uint8 RGBA: background is transparent."""
    rgba = np.empty((*tiles.shape, 4), np.uint8)
    rgba[..., :3] = colours(np.where(tiles == LOSSLESS, np.inf, values))
    rgba[..., 3] = np.where(tiles == BACKGROUND, 0, 255)
    return rgba


def fidelity_map(
    container: Container, picture: Pixels | None = None, *, measure: Measure = "psnr", longest: int = LONGEST
) -> Pixels:
    """Draw the fidelity of each chunk of level 0 half transparent over `picture`, a small one of the whole slide, with
    a legend below: (H, W, 3) uint8 RGB. Without a picture, it lies over the background colour.

    Raises FormatError where the container's maps are damaged.
    """
    tiles, level = container.tiles(0), container.attributes.levels[0]
    scale = longest / max(level.width, level.height)
    width, height = max(1, round(level.width * scale)), max(1, round(level.height * scale))
    base = np.full((height, width, 3), container.attributes.background.colour, np.uint8)
    if picture is not None:
        base = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    side = container.attributes.chunk_side
    rows = ((np.arange(height) + 0.5) * level.height / height).astype(int) // side
    columns = ((np.arange(width) + 0.5) * level.width / width).astype(int) // side
    rgba = chunk_colours(tiles, decibels(container, 0, measure))[rows[:, None], columns]
    tint = TINT * (rgba[..., 3:] / 255)
    return _with_legend(
        (base * (1 - tint) + rgba[..., :3] * tint).round().astype(np.uint8), measure, f"{side} x {side}"
    )


def legend() -> Sequence[tuple[Colour, str, str]]:
    """The colour, the range and the meaning of each step, from low to high."""
    rows = []
    for step, above in zip(STEPS, [*STEPS[1:], None], strict=True):
        if above is None:
            text = f"from {step.decibels:g} dB"
        elif np.isfinite(step.decibels):
            text = f"{step.decibels:g} to {above.decibels:g} dB"
        else:
            text = f"below {above.decibels:g} dB"
        rows.append((step.colour, text, step.meaning))
    return [*rows, (LOSSLESS_STEP.colour, "lossless", "nothing was lost")]


def _with_legend(picture: Pixels, measure: Measure, chunk: str) -> Pixels:
    height, width, _ = picture.shape
    line = SWATCH + GAP
    below = MARGIN + NOTE_SIZE + GAP + 4 * line + MARGIN
    sheet = Image.new("RGB", (2 * MARGIN + max(width, MIN_WIDTH), MARGIN + height + below), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(NOTE_SIZE)
    sheet.paste(Image.fromarray(picture), (MARGIN, MARGIN))
    draw.rectangle((MARGIN - 1, MARGIN - 1, MARGIN + width, MARGIN + height), outline=INK)
    x, y = MARGIN, 2 * MARGIN + height
    draw.text((x, y), f"{TITLES[measure]}; chunks of {chunk} pixels", INK, font)
    y += NOTE_SIZE + GAP
    entries = [(colour, f"{text}: {meaning}") for colour, text, meaning in legend()]
    entries.append((PAPER, "no colour: background, skipped"))
    for number, (colour, text) in enumerate(entries):
        left, top = x + MIN_WIDTH // 2 * (number // 4), y + line * (number % 4)
        fill = tuple(round(TINT * c + (1 - TINT) * p) for c, p in zip(colour, PAPER, strict=True))
        draw.rectangle((left, top, left + SWATCH, top + SWATCH), fill, INK)
        draw.text((left + SWATCH + GAP, top + SWATCH // 2), text, INK, font, anchor="lm")
    return np.asarray(sheet)
