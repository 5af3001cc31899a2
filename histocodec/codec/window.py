"""What an encoder reads and analyses of a slide for one chunk: its pixels, and its latents with those around it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.transform import Transform, margin_of, whole_latents
from histocodec.geometry import Margin, Region
from histocodec.models.config import ModelConfig
from histocodec.normalise import ChannelStats
from histocodec.slide import Pixels, Slide


@dataclass(frozen=True)
class Window:
    """A chunk to quantise: y before gains (C, h, w) float32 with the synthesis's halo as far as the level goes, how
    far that reaches beyond the chunk, and the chunk's own pixels (H, W, 3) uint8."""

    y: NDArray[np.float32]
    margin: Margin
    pixels: Pixels

    @property
    def own(self) -> tuple[slice, slice, slice]:
        """Where the chunk's latents are in y."""
        m, (_, rows, columns) = self.margin, self.y.shape
        return slice(None), slice(m.top, rows - m.bottom), slice(m.left, columns - m.right)


@dataclass(frozen=True)
class Surroundings:
    """A chunk with the pixels around it that the halos of both transforms reach: what was read (H, W, 3) uint8, and
    where in the level the chunk lies, what its synthesis sees, and what was read."""

    pixels: Pixels
    chunk: Region
    kept: Region
    read: Region

    @classmethod
    def of(cls, slide: Slide, level: int, chunk: Region, config: ModelConfig) -> "Surroundings":
        whole = slide.levels[level].region
        kept = chunk.expanded(config.synthesis_halo * config.stride).intersect(whole)
        read = kept.expanded(config.analysis_halo * config.stride).intersect(whole)
        return cls(slide.read(read, level), chunk, kept, read)

    def analysed(self, transform: Transform, stats: ChannelStats) -> Window:
        stride = transform.weights.config.stride
        y = transform.analyse(whole_latents(self.pixels, stride), margin_of(self.kept, self.read, stride), stats)
        return Window(y, margin_of(self.chunk, self.kept, stride), self.pixels[self.chunk.within(self.read)])


def analysed(slide: Slide, level: int, chunk: Region, transform: Transform, stats: ChannelStats) -> Window:
    """The window of a chunk of a slide's level, read and analysed with the halos of both transforms."""
    return Surroundings.of(slide, level, chunk, transform.weights.config).analysed(transform, stats)
