"""What an encode reports: sizes on disk, fidelity as measured by decoding, and time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histocodec.formats.container.attributes import Attributes
from histocodec.formats.container.read import open_container, sizes
from histocodec.formats.decode.fidelity import LevelFidelity
from histocodec.formats.encode.partial_container import ShardMaps
from histocodec.formats.encode.unreadable import Place


@dataclass(frozen=True)
class EncodeReport:
    """A finished container.

    Bytes are those on disk; `payload_bytes` are those of latents, lossless chunks, indices and statistics. `bpp` and
    `ratio_raw` compare the bytes of all levels with the pixels of level 0; `ratio_level0` compares only the shards and
    lossless chunks of level 0 with them; `ratio_source_file` compares the container with the source file.
    """

    path: str
    bytes: int
    payload_bytes: int
    width: int  # pixels of level 0
    height: int
    bpp: float
    ratio_raw: float
    ratio_source_file: float | None  # None where the source is no file
    ratio_level0: float | None  # None where level 0 is all background
    psnr: float  # dB over the chunks of level 0 that are not background; infinite where nothing was lost
    worst_psnr: float | None  # dB of any chunk of any level that is not background; None where there is none
    worst_block_error: float | None  # likewise, RMS in grey values over 16×16 pixels
    chunks: int  # that are not background
    raised: int  # of these, those with a higher quality than their level, for --min-psnr
    lossless: int  # of these, those stored losslessly
    seconds: float
    megapixels_per_second: float  # of all levels
    device: str
    model: str
    model_file: str | None  # the decoder's file beside the container, with --model-beside
    quality: int
    asked_quality: float | None  # as --quality gave it; on this slide worth as much as the one that is stored
    levels: int
    uid: str  # names the pixels, in hexadecimal
    digest: str  # SHA-256 that names the whole container, for whoever signs it
    dropped: tuple[str, ...]  # associated images and properties that were left out, and regions as in `unreadable`
    unreadable: tuple[Place, ...]  # what of the source could not be read and has the background colour


@dataclass(frozen=True)
class Outcome:
    """What became of the chunks that are not background: how many there are, and the worst of them."""

    chunks: int
    raised: int
    lossless: int
    worst_psnr: float | None
    worst_block_error: float | None

    @classmethod
    def of_level(cls, maps: ShardMaps, fidelity: LevelFidelity, quality: int) -> "Outcome":
        """The outcome of one level whose chunks had this quality before any was raised."""
        measured = maps.stored > 0
        return cls(
            maps.stored,
            maps.raised(quality),
            maps.lossless,
            float(np.nanmin(fidelity.psnr)) if measured else None,
            float(np.nanmax(fidelity.block_error)) if measured else None,
        )

    @classmethod
    def total(cls, levels: "Sequence[Outcome]") -> "Outcome":
        """The outcome of all levels together."""
        return cls(
            sum(level.chunks for level in levels),
            sum(level.raised for level in levels),
            sum(level.lossless for level in levels),
            min((level.worst_psnr for level in levels if level.worst_psnr is not None), default=None),
            max((level.worst_block_error for level in levels if level.worst_block_error is not None), default=None),
        )


def make_report(
    path: str | Path,
    attributes: Attributes,
    outcome: Outcome,
    *,
    unreadable: tuple[Place, ...],
    asked_quality: float | None,
    seconds: float,
    device: str,
    model_file: Path | None,
) -> EncodeReport:
    """The report on the finished container at `path`, a path or URL, which took `seconds` on `device`."""
    container, first = open_container(path), attributes.levels[0]
    size = sizes(container.store)
    pixels, source_bytes = first.width * first.height, attributes.source.bytes
    level0 = sum(container.level_bytes(0))
    stats_bytes = 4 * 3 + 4 * 3 + 3 + 4 * attributes.model.channels  # mean, deviation, background and its latent
    if asked_quality is not None and asked_quality % 1 == 0:
        asked_quality = int(asked_quality)
    return EncodeReport(
        path=str(path),
        bytes=size.total,
        payload_bytes=size.latents + size.lossless + stats_bytes,
        width=first.width,
        height=first.height,
        bpp=8 * size.total / pixels,
        ratio_raw=3 * pixels / size.total,
        ratio_source_file=None if source_bytes is None else source_bytes / size.total,
        ratio_level0=3 * pixels / level0 if level0 else None,
        psnr=first.psnr if first.psnr is not None else math.inf,
        worst_psnr=outcome.worst_psnr,
        worst_block_error=outcome.worst_block_error,
        chunks=outcome.chunks,
        raised=outcome.raised,
        lossless=outcome.lossless,
        seconds=seconds,
        megapixels_per_second=sum(level.width * level.height for level in attributes.levels) / seconds / 1e6,
        device=device,
        model=attributes.model.id,
        model_file=None if model_file is None else str(model_file),
        quality=first.quality,
        asked_quality=asked_quality,
        levels=len(attributes.levels),
        uid=container.attributes.provenance.uid,
        digest=container.attributes.provenance.digest,
        dropped=attributes.dropped,
        unreadable=unreadable,
    )
