"""Sheets of images with captions, as `demo`, `search --sheet` and the benchmarks draw them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from histocodec.slide import Pixels

MARGIN = 16
GAP = 8  # between two lines of a caption
TITLE_SIZE, NOTE_SIZE = 20, 17
INK, PAPER = (32, 32, 32), (255, 255, 255)


@dataclass(frozen=True, eq=False)
class Panel:
    """An image and the two lines of its caption."""

    pixels: Pixels
    title: str
    note: str  # smaller, below the title


def side_by_side(panels: Sequence[Panel]) -> Pixels:
    """Draw panels in a row, without resampling them: (H, W, 3) uint8."""
    width = max(panel.pixels.shape[1] for panel in panels)
    height = max(panel.pixels.shape[0] for panel in panels)
    below = TITLE_SIZE + GAP + NOTE_SIZE + MARGIN
    size = (MARGIN + len(panels) * (width + MARGIN), MARGIN + height + GAP + below)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    title, note = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(NOTE_SIZE)
    for index, panel in enumerate(panels):
        x, y = MARGIN + index * (width + MARGIN), MARGIN + height + GAP
        sheet.paste(Image.fromarray(panel.pixels), (x, MARGIN))
        draw.text((x, y), panel.title, INK, title)
        draw.text((x, y + TITLE_SIZE + GAP), panel.note, INK, note)
    return np.asarray(sheet)


def in_rows(panels: Sequence[Panel], columns: int = 5) -> Pixels:
    """Draw panels in rows of `columns`, without resampling them: (H, W, 3) uint8."""
    rows = [side_by_side(panels[first : first + columns]) for first in range(0, len(panels), columns)]
    width = max(row.shape[1] for row in rows)
    sheet = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(sheet)
