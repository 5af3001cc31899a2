"""Regions of a container as tensors on a GPU: compressed bytes go up, and all else happens there. The pixels are those
that a CPU decodes, bit for bit."""

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
from torch import Tensor

from histocodec.codec.gpu import kernels
from histocodec.codec.gpu.chunk import GpuChunkDecoder, Latents
from histocodec.codec.gpu.layers import launch
from histocodec.codec.gpu.synthesis import TritonEngine, pixels
from histocodec.formats.container.layout import BACKGROUND
from histocodec.geometry import ChunkKey, Region, ceil_div
from histocodec.models.transforms.fast import IntegerSynthesis
from histocodec.models.weights import ModelWeights
from histocodec.slide import Pixels

if TYPE_CHECKING:
    from histocodec.formats.decode.blocks import BlockDecoder

BATCH = 1024  # chunks that are decoded side by side, at most: a warp each, of which a GPU runs thousands
BAND = 256  # of which pixels are made at once
CHUNK_BYTES = 16 << 20  # of memory that a chunk takes on its way, at most
PLACES, CHANNELS = 32, 64  # of a program


class GpuRegions:
    """Decodes regions of what a `BlockDecoder` has opened, on its device."""

    def __init__(self, decoder: "BlockDecoder") -> None:
        self.decoder, self.config, device = decoder, decoder.weights.hyper, decoder.device
        self.coder, self.synthesis = _networks(decoder.weights, device)
        self.gains = torch.from_numpy(np.array(decoder.weights.arrays["inverse_gain"])).to(device)
        self.empty = torch.from_numpy(np.array(decoder.stats.background_latent, np.float32)).to(device)
        self.white = torch.from_numpy(np.array(decoder.stats.background, np.uint8)).to(device)
        self.most = BATCH  # chunks at once
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            self.most = min(BATCH, max(1, free // 2 // CHUNK_BYTES))

    def region(self, level: int, region: Region) -> Tensor:
        """The pixels (h, w, 3) uint8 of a region within the level."""
        out = torch.empty((region.height, region.width, 3), dtype=torch.uint8, device=self.decoder.device)
        if not region.empty:
            for strip in self._strips(region, self.most):
                self._decode(level, strip, out[strip.within(region)])
        return out

    def copy(self, level: int, region: Region, pixels: Pixels) -> None:
        """The same into host memory (h, w, 3) uint8, strip by strip: it need not fit into the GPU's."""
        host = torch.from_numpy(pixels)
        for strip in self._strips(region, self.most):
            host[strip.within(region)].copy_(self.region(level, strip))

    def _strips(self, region: Region, chunks: int) -> Iterator[Region]:
        """A region in strips of whole rows of so many chunks at most, or of one row."""
        side = self.decoder.container.attributes.chunk_side
        across = ceil_div(region.x_end, side) - region.x // side
        rows = max(1, chunks // across) * side
        for top in range(region.y // side * side, region.y_end, rows):
            yield Region(region.x, top, region.width, rows).intersect(region)

    @torch.inference_mode()
    def _decode(self, level: int, strip: Region, out: Tensor) -> None:
        """One strip's pixels (h, w, 3), into `out`."""
        decoder = self.decoder
        seen = decoder.seen_from(level, decoder.latents_of(strip))
        keys = list(decoder.chunks_in(level, seen))
        coded = [key for key in keys if decoder.tiles[level][key.row, key.column] != BACKGROUND]
        slots = np.full((keys[-1].row - keys[0].row + 1, keys[-1].column - keys[0].column + 1), -1, np.int32)
        for n, key in enumerate(coded):
            slots[key.row - keys[0].row, key.column - keys[0].column] = n
        if coded:
            latents = self.coder.decode(decoder.stored(coded), decoder.side)
            there = torch.from_numpy(slots).to(out.device)
            self._synthesise(level, strip, seen, latents, there, out)
            if self._mended(level, coded, latents):
                self._synthesise(level, strip, seen, latents, there, out)
        for key in decoder.touched(level, strip):
            if decoder.coded(key):
                continue
            known, where = decoder.known(key), decoder.where(key)
            assert known is not None
            part = where.intersect(strip)
            if decoder.tiles[key.level][key.row, key.column] == BACKGROUND:
                out[part.within(strip)] = self.white
            else:
                out[part.within(strip)] = torch.from_numpy(known[part.within(where)]).to(out.device)

    def _synthesise(
        self, level: int, strip: Region, seen: Region, latents: Latents, slots: Tensor, out: Tensor
    ) -> None:
        """A strip's pixels (h, w, 3) from the latents that it sees: of the chunks there, `slots` (rows, columns) int32
        says which lies where, or -1."""
        decoder, stride, side = self.decoder, self.config.stride, self.decoder.side
        gains = self.gains[latents.quality.long()]
        for band in self._strips(strip, min(BAND, self.most)):
            area = decoder.latents_of(band)
            window, margin = decoder.window_of(level, area)
            first = window.y - seen.y // side * side, window.x - seen.x // side * side
            blocks = self.synthesis.window(self._canvas(latents.y, slots, gains, first, window), margin)
            shown = pixels(blocks, decoder.stats.channels)[0]
            out[band.within(strip)] = shown[band.within(Region(area.x * stride, area.y * stride, 0, 0))]

    def _canvas(self, y: Tensor, slots: Tensor, gains: Tensor, first: tuple[int, int], window: Region) -> Tensor:
        """The scaled latents (1, C, h, w) float32 of a window that begins at `first` of the chunks in `slots`."""
        channels, count = self.config.latent_channels, window.area
        out = torch.empty((1, window.height, window.width, channels), dtype=torch.float32, device=y.device)
        grid = triton.cdiv(count, PLACES), triton.cdiv(channels, CHANNELS)
        launch(
            kernels.canvas, grid, y, slots, gains, self.empty, out, *first, window.width, count, self.decoder.side,
            slots.shape[1], channels // 4, PLACES=PLACES, CHANNELS=CHANNELS,
        )  # fmt: skip
        return out.permute(0, 3, 1, 2)

    def _mended(self, level: int, keys: list[ChunkKey], latents: Latents) -> bool:
        """Whether latents had to be decoded by the CPU, which says what is wrong with those that are."""
        decoder, side = self.decoder, self.decoder.side
        limits = np.iinfo(decoder.container.attributes.levels[level].dtype)
        low, high = latents.y.flatten(1).aminmax(dim=1)
        fine = (latents.sound & (low >= limits.min) & (high <= limits.max)).cpu().numpy()
        for n in np.flatnonzero(~fine):
            grouped = decoder.decoded(keys[n]).y.reshape(-1, 4, side, side).transpose(2, 3, 1, 0)
            latents.y[n] = torch.from_numpy(np.array(grouped, np.int16)).to(latents.y.device)
        return not fine.all()


@lru_cache(maxsize=4)
def _networks(weights: ModelWeights, device: torch.device) -> tuple[GpuChunkDecoder, IntegerSynthesis]:
    """Put together once for all slides of a model."""
    engine = TritonEngine(weights.hyper, weights.arrays, device)
    return GpuChunkDecoder(weights, device), IntegerSynthesis(weights.hyper, weights.arrays, device, engine=engine)
