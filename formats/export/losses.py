"""What a slide's pixels went through before they were exported, for the metadata of the export.

DICOM has attributes for it (PS3.3, C.7.6.1.1.5: Lossy Image Compression, its Ratio and Method); the other formats get
the same in words.
"""

import math
from dataclasses import dataclass

from histocodec.formats.decode.slide import CompressedSlide

OURS = "HISTOCODEC"  # DICOM's list of methods is open; ours is on no list
RAW_BYTES = 3  # of a pixel


@dataclass(frozen=True)
class Loss:
    """A lossy compression: in words, as DICOM's Lossy Image Compression Method, and raw bytes per compressed byte,
    None where that is not known."""

    words: str
    method: str
    ratio: float | None

    def __str__(self) -> str:
        return self.words if self.ratio is None else f"{self.words}, 1:{self.ratio:.4g}"


def losses_of(slide: CompressedSlide, level: int) -> tuple[Loss, ...]:
    """What the container's own compression did to a level; empty where every chunk of it is lossless. What the source's
    file did before is not known."""
    attributes = slide.container.attributes
    described = attributes.levels[level]
    if described.psnr is not None and math.isinf(described.psnr):
        return ()
    ratio = RAW_BYTES * described.width * described.height / described.bytes if described.bytes else None
    return (Loss(f"histocodec (model {slide.model_id}, quality {described.quality})", OURS, ratio),)


def history(losses: tuple[Loss, ...], coding: str) -> str:
    """One sentence for people: all losses in order, then how the exported pixels are coded."""
    before = "; ".join(str(loss) for loss in losses) or "none known"
    return f"Lossy compression before this file: {before}. Pixels here: {coding}."
