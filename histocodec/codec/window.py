"""Windows: a chunk, and as much around it as the networks' halos reach and the level has.

┌───────────────────────────┐   analysis region: the pixels that g_a reads
│   ┌───────────────────┐   │
│   │                   │   │   synthesis region: the latents that g_s reads
│   │     ┌───────┐     │   │
│   │     │ chunk │     │   │   512 × 512 pixels
│   │     └───────┘     │   │
│   └───────────────────┘   │
└───────────────────────────┘   each ends where the level ends
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.codec.transform import Transform
from histocodec.geometry import Margin, Region, ceil_div
from histocodec.models.config import ModelConfig
from histocodec.normalise import ChannelStats
from histocodec.slide import Pixels, Slide


@dataclass(frozen=True)
class Window:
    """A chunk, analysed and ready to be quantised."""

    y: NDArray[np.float32]  # (C, h, w) before gains, of the synthesis region
    margin: Margin  # in latents: how far y reaches beyond the chunk
    pixels: Pixels  # (H, W, 3) uint8, of the chunk alone

    @property
    def inner(self) -> tuple[slice, slice, slice]:
        """The chunk's latents in y, as an index."""
        m, (_, rows, columns) = self.margin, self.y.shape
        return slice(None), slice(m.top, rows - m.bottom), slice(m.left, columns - m.right)


@dataclass(frozen=True)
class PixelWindow:
    """A chunk with the pixels around it that the halos of both transforms reach. The regions are in the level's
    pixels."""

    pixels: Pixels  # (H, W, 3) uint8, of the analysis region
    chunk: Region
    synthesis_region: Region
    analysis_region: Region

    @classmethod
    def read(cls, slide: Slide, level: int, chunk: Region, config: ModelConfig) -> "PixelWindow":
        """Read the window of the chunk at `chunk`, a region of the slide's level. Raises SourceError."""
        level_region = slide.levels[level].region
        synthesis = chunk.expanded(config.synthesis_halo * config.stride).intersect(level_region)
        analysis = synthesis.expanded(config.analysis_halo * config.stride).intersect(level_region)
        return cls(slide.read(analysis, level), chunk, synthesis, analysis)

    def analyse(self, transform: Transform, stats: ChannelStats) -> Window:
        """The window after the analysis."""
        stride = transform.weights.config.stride
        margin = margin_of(self.synthesis_region, self.analysis_region, stride)
        y = transform.analyse(pad_pixels(self.pixels, stride), margin, stats)
        pixels = self.pixels[self.chunk.within(self.analysis_region)]
        return Window(y, margin_of(self.chunk, self.synthesis_region, stride), pixels)


def read_window(slide: Slide, level: int, chunk: Region, transform: Transform, stats: ChannelStats) -> Window:
    """Read and analyse the chunk at `chunk`, a region of the slide's level. Raises SourceError."""
    return PixelWindow.read(slide, level, chunk, transform.weights.config).analyse(transform, stats)


def pad_pixels(pixels: Pixels, stride: int) -> Pixels:
    """Pixels (H, W, 3) whose last row and column are repeated until both sides are multiples of `stride`."""
    down, across = -pixels.shape[0] % stride, -pixels.shape[1] % stride
    return np.pad(pixels, ((0, down), (0, across), (0, 0)), mode="edge") if down or across else pixels


def margin_of(inner: Region, outer: Region, stride: int) -> Margin:
    """How far `outer` reaches beyond `inner`, in latents. Both are in pixels and start at multiples of `stride`."""
    return Margin(
        (inner.y - outer.y) // stride,
        (inner.x - outer.x) // stride,
        ceil_div(outer.y_end, stride) - ceil_div(inner.y_end, stride),
        ceil_div(outer.x_end, stride) - ceil_div(inner.x_end, stride),
    )


def latent_slices(inner: Region, outer: Region, stride: int) -> tuple[slice, slice, slice]:
    """The latents of `inner` in an array (C, h, w) of those of `outer`, as an index. Both regions are in pixels and
    start at multiples of `stride`."""
    top, left = (inner.y - outer.y) // stride, (inner.x - outer.x) // stride
    rows, columns = ceil_div(inner.height, stride), ceil_div(inner.width, stride)
    return slice(None), slice(top, top + rows), slice(left, left + columns)
