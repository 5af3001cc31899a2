"""The crop sheet: the middle of one image per group, as it was and as every codec leaves it, in the same bytes.

It shows tissue: where that may not be shown, `--no-crops` leaves the sheet out.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from histocodec.benchmarks.measure.byte_budget import ours_within
from histocodec.benchmarks.measure.images import Picture, Sample, read
from histocodec.benchmarks.measure.measure_images import BenchOptions
from histocodec.benchmarks.measure.result_rows import OURS
from histocodec.benchmarks.peers.codecs import PEERS
from histocodec.benchmarks.peers.contender import code_at_bytes
from histocodec.fidelity import psnr, squared_error
from histocodec.geometry import Region
from histocodec.picture import PAPER, Panel, side_by_side
from histocodec.slide import Pixels
from histocodec.text import decibel_text

SIDE = 256  # pixels of an image that are shown
BPP = 0.25  # low enough to see what goes first


def crop_sheet(samples: Sequence[Sample], options: BenchOptions) -> bytes:
    """Draw a PNG with a row for the first sample of each group and variant."""
    first = {(sample.variant, sample.group): sample for sample in reversed(samples)}
    bands = [side_by_side(_panels(read(sample), options)) for sample in reversed(first.values())]
    width = max(band.shape[1] for band in bands)
    sheet = np.full((sum(len(band) for band in bands), width, 3), PAPER, np.uint8)
    top = 0
    for band in bands:
        sheet[top : top + len(band), : band.shape[1]] = band
        top += len(band)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "PNG")
    return file.getvalue()


def _panels(picture: Picture, options: BenchOptions) -> list[Panel]:
    """The original, ours, and the peers on whole images."""
    pixels, budget = picture.pixels, int(BPP * picture.area / 8)
    height, width = pixels.shape[:2]
    whole = Region(0, 0, width, height)
    middle = Region((width - SIDE) // 2, (height - SIDE) // 2, SIDE, SIDE).intersect(whole).within(whole)
    size, decoded = ours_within(
        pixels,
        budget,
        model=options.model,
        device=options.device,
        threads=options.threads,
        effort=options.effort,
    )
    panels = [
        Panel(pixels[middle], "original", picture.subject.image),
        Panel(decoded[middle], OURS, _note(size, decoded, picture)),
    ]
    for name in options.against:
        peer = PEERS[name][0]
        data = code_at_bytes(peer, pixels, budget).data
        decoded = peer.decode(data)
        panels.append(Panel(decoded[middle], peer.name, _note(len(data), decoded, picture)))
    return panels


def _note(size: int, decoded: Pixels, picture: Picture) -> str:
    decibels = psnr(squared_error(decoded, picture.pixels), picture.pixels.size)
    return f"{8 * size / picture.area:.3f} bpp, {decibel_text(decibels)}"
