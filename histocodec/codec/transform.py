"""Pixels to latents and back: `g_a` and `g_s` of one model on one device, with normalisation.

Only the analysis may round differently from machine to machine, and a synthesis in floating point. An integer synthesis
gives the same pixels everywhere, and what a container stores is computed once, from integers.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from histocodec.codec.gains import dequantise, quantise
from histocodec.codec.native import decodes_natively
from histocodec.codec.networks import analysis_network, gpu_engine, synthesis_network
from histocodec.device import fastest_dtype
from histocodec.errors import FormatError
from histocodec.geometry import Margin
from histocodec.kernels.instructions import runs_natively
from histocodec.kernels.pixels import shuffled, squared_errors, unshuffled
from histocodec.models.config import HyperConfig
from histocodec.models.transforms.analysis import Int8Analysis
from histocodec.models.transforms.exact import IntegerSynthesis
from histocodec.models.transforms.fast import fastest_engine, int8_products_exact
from histocodec.models.transforms.native import NativeSynthesis
from histocodec.models.transforms.native_analysis import NativeAnalysis
from histocodec.models.transforms.native_gradient import NativeGradient
from histocodec.models.transforms.network import Analysis, Hidden, Synthesis
from histocodec.models.transforms.pullback import Pullback, Sizes
from histocodec.models.vae.network import VaeDecoder, VaeEncoder
from histocodec.models.weights import ModelWeights
from histocodec.normalise import ChannelStats
from histocodec.slide import Colour, Pixels

MOST_MOVES = 4  # of the mean in `aligned`: the first is nearly always right


class Transform:
    """The analysis `g_a` and the synthesis `g_s` of one model on one device, for windows of a level. Thread-safe.

    `dtype` is the type of floating-point arithmetic, by default the device's fastest. An integer synthesis does not
    depend on it. Raises FormatError where the model's tensors do not fit its config.
    """

    def __init__(self, weights: ModelWeights, device: torch.device, *, dtype: torch.dtype | None = None) -> None:
        self.weights, self.device = weights, device
        self.dtype = fastest_dtype(device) if dtype is None else dtype
        self._int8_allowed = dtype is None and device.type == "cpu"  # for the analysis, where the CPU is exact
        self.by_kernels = False  # whether the Triton kernels of `histocodec.codec.gpu` compute the synthesis
        self._native: NativeSynthesis | None = None  # what computes pixels on a CPU that has the instructions for it
        self.g_s: Synthesis | VaeDecoder | IntegerSynthesis
        if isinstance(weights.config, HyperConfig) and weights.config.integer_synthesis:
            engine = gpu_engine(weights, device)
            self.by_kernels = engine is not None
            if device.type == "cpu" and decodes_natively(weights):
                self._native = NativeSynthesis(weights.config, weights.arrays)
            engine = engine or fastest_engine(weights.config, weights.arrays, device)
            self.g_s = IntegerSynthesis(weights.config, engine)
        else:
            self.g_s = self._float_synthesis

    @property
    def exact(self) -> bool:
        """Whether the synthesis computes in integers, so that a pixel is the same in every window and on every
        machine."""
        return isinstance(self.g_s, IntegerSynthesis)

    def analyse(self, pixels: NDArray[np.uint8], margin: Margin, stats: ChannelStats) -> NDArray[np.float32]:
        """Pixels (H, W, 3) uint8, H and W multiples of the stride → y (C, h, w) float32 before gains, without the
        margin, which is in latents."""
        if self._native_analysis is not None:
            return self._native_analysis.y(pixels, margin, stats.mean, stats.std)
        with torch.inference_mode():
            if self.device.type == "cpu":
                planes = torch.from_numpy(unshuffled(pixels, stats.mean, stats.std)).permute(2, 0, 1)[None]
            else:
                mean, std = _on_device(stats, self.device)
                planes = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1)[None].float()
                planes = F.pixel_unshuffle((planes - mean) / std, 8)
            x = planes.to(self.dtype).contiguous(memory_format=torch.channels_last)
            y = self._analysis.window(x, margin)
            return cast("NDArray[np.float32]", y[0].float().contiguous().cpu().numpy())

    def analyse_colour(self, colour: Colour, stats: ChannelStats) -> NDArray[np.float32]:
        """y (C,) float32 before gains, anywhere in an area of one colour."""
        halo, stride = self.weights.config.analysis_halo, self.weights.config.stride
        pixels = np.full(((2 * halo + 1) * stride, (2 * halo + 1) * stride, 3), colour, np.uint8)
        return self.analyse(pixels, Margin(halo, halo, halo, halo), stats)[:, 0, 0]

    def synthesise(
        self, windows: Sequence[NDArray[np.float32]], margin: Margin, stats: ChannelStats
    ) -> list[NDArray[np.uint8]]:
        """Windows (C, h, w) float32 with their gains undone, all of one shape and margin → pixels (H, W, 3) uint8 of
        each, without the margin. Raises FormatError where a synthesis in floating point gives infinity or NaN."""
        if self._native is not None:
            return [self._native.pixels(window, margin, stats.mean, stats.std) for window in windows]
        with torch.inference_mode():
            batch = [torch.from_numpy(window) for window in windows]
            latents = batch[0][None] if len(batch) == 1 else torch.stack(batch)
            planes = self._planes(latents.to(self.device), margin)
            if not self.exact and not bool(torch.isfinite(planes).all()):  # NaN would become some colour
                raise FormatError(
                    f"model {self.weights.id}: its synthesis goes beyond floating point on these latents; the model or "
                    "the container is damaged. Get them anew"
                )
            return self.denormalise(planes, stats)

    def synthesise_side_by_side(
        self, window: NDArray[np.float32], margin: Margin, stats: ChannelStats, width: int
    ) -> list[NDArray[np.uint8]]:
        """`synthesise` of one window, as images side by side, `width` wide, a multiple of 8, but for the last, which
        has the rest."""
        if self._native is not None:
            return self._native.images(window, margin, stats.mean, stats.std, width)
        pixels = self.synthesise([window], margin, stats)[0]
        return [pixels[:, first : first + width] for first in range(0, pixels.shape[1], width)]

    @staticmethod
    def denormalise(planes: Tensor, stats: ChannelStats) -> list[NDArray[np.uint8]]:
        """Unshuffled pixels (B, 192, h, w) float32, normalised → pixels (8h, 8w, 3) uint8 of each."""
        if planes.device.type == "cpu":
            batch = planes.permute(0, 2, 3, 1).contiguous().numpy()
            return [shuffled(image, stats.mean, stats.std) for image in batch]
        mean, std = _on_device(stats, planes.device)
        rounded = (F.pixel_shuffle(planes, 8) * std + mean).round_().clamp_(0, 255).to(torch.uint8)
        return list(rounded.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def synthesise_unrounded(self, latents: Tensor, margin: Margin, stats: ChannelStats) -> Tensor:
        """A batch of latents (B, C, h, w) float32 with their gains undone → (B, 3, H, W) float32 in grey values,
        neither rounded nor clipped, without the margin."""
        mean, std = _on_device(stats, self.device)
        return F.pixel_shuffle(self._planes(latents, margin), 8) * std + mean

    def error_and_gradient(
        self, latents: Tensor, margin: Margin, stats: ChannelStats, pixels: Pixels, *, gradient: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        """The squared error of decoded latents against pixels, and its derivative. For `hyper` models.

        `latents` (1, C, h', w') float32 are a window with its gains undone, and `pixels` (H, W, 3) uint8 are those of
        the window without its margin. What is decoded is neither rounded nor clipped. Returns the error, in grey
        values squared, at each latent's position (h, w), and the derivative of their sum in each latent of the window
        (C, h', w'), or None without `gradient`.
        """
        assert not isinstance(self.g_s, VaeDecoder)
        hidden: Hidden = []
        with torch.inference_mode():
            planes = self._planes(latents, margin, hidden)[0].permute(1, 2, 0).contiguous().cpu().numpy()
            per = self.weights.config.stride // 8
            error, slope = squared_errors(planes, pixels, stats.mean, stats.std, per)
            if not gradient:
                return error, None
            return error, self._pull_back(torch.from_numpy(slope).permute(2, 0, 1)[None], margin, hidden)

    def native_gradient(
        self, latents: Tensor, margin: Margin, stats: ChannelStats, pixels: Pixels, quality: int
    ) -> NativeGradient | None:
        """What computes `error_and_gradient` of a slide's latents at a quality by native kernels, and of the chunk's
        latents only. The arguments are those of an example, whose derivatives decide about units. None where this
        device or model has no such kernels."""
        if self._native is None:
            return None
        hidden: Hidden = []
        with torch.inference_mode():
            planes = self._planes(latents, margin, hidden)[0].permute(1, 2, 0).contiguous().numpy()
            per = self.weights.config.stride // 8
            slope = torch.from_numpy(squared_errors(planes, pixels, stats.mean, stats.std, per)[1])
            last = slope.permute(2, 0, 1)[None].to(self.dtype).contiguous(memory_format=torch.channels_last)
            sizes: Sizes = {}
            self._pullback(last, margin, hidden, sizes)
        weights = self.weights
        return NativeGradient(self._native, weights.hyper, weights.arrays, weights.inverse_gain(quality), sizes)

    def gauss_newton(self, latents: Tensor, field: Tensor, stats: ChannelStats) -> NDArray[np.float32]:
        """JᵀJ · field, (C, h, w), where J is the derivative of the pixels (in grey values) in the latents, at `latents`
        (1, C, h, w) float32 with their gains undone. For `hyper` models."""
        assert isinstance(self._float_synthesis, Synthesis)
        hidden: Hidden = []
        with torch.inference_mode():
            centre, above, below = (
                x.to(self.dtype).contiguous(memory_format=torch.channels_last)
                for x in (latents, latents + field / 2, latents - field / 2)
            )
            self._float_synthesis.window(centre, Margin(), hidden)
            change = self._float_synthesis.window(above, Margin()) - self._float_synthesis.window(below, Margin())
            variance = torch.from_numpy(stats.std**2).to(change.device).repeat_interleave(64)[None, :, None, None]
            return self._pull_back(change * variance, Margin(), hidden)

    def aligned(self, stats: ChannelStats, colour: Colour, quality: int) -> ChannelStats:
        """`stats` with the mean moved so that, at this quality, an area of one `colour` decodes to that colour.

        Without this, such an area comes out several grey values off at low qualities, where the latents are coarse.
        At high qualities a moved mean moves the latents, too; then the best of `MOST_MOVES` means is taken.
        """
        halo = self.weights.config.synthesis_halo
        best, least, previous = stats, np.inf, None
        for _ in range(MOST_MOVES):
            y = self.analyse_colour(colour, stats)[:, None, None]
            latents = quantise(y, self.weights.gain(quality), np.dtype(np.int16))
            if previous is not None and np.array_equal(latents, previous):
                return stats
            previous = latents
            scaled = dequantise(latents, self.weights.inverse_gain(quality))
            window = torch.from_numpy(np.tile(scaled, (1, 2 * halo + 1, 2 * halo + 1))[None]).to(self.device)
            with torch.inference_mode():
                decoded = self.synthesise_unrounded(window, Margin(halo, halo, halo, halo), stats)[0].mean(dim=(1, 2))
            off = np.array(colour, np.float32) - decoded.cpu().numpy()
            if (off**2).sum() < least:
                best, least = stats, float((off**2).sum())
            stats = ChannelStats(stats.mean + off, stats.std)
        return best

    @cached_property
    def g_a(self) -> Analysis | VaeEncoder:
        """The analysis in floating point. Made on first use, since a reader never needs it and a model may lack it."""
        return analysis_network(self.weights).to(self.device, self.dtype)

    @cached_property
    def _native_analysis(self) -> NativeAnalysis | None:
        """`g_a` by native kernels, where model and CPU have what they need and no dtype was asked for."""
        config, weights = self.weights.config, self.weights
        if not (isinstance(config, HyperConfig) and config.analysis8 and self._has_reaches and runs_natively()):
            return None
        return NativeAnalysis(config, weights.transform("g_a"), weights.arrays)

    @property
    def _has_reaches(self) -> bool:
        return self._int8_allowed and any(name.startswith("reach.") for name in self.weights.arrays)

    @cached_property
    def _analysis(self) -> Analysis | VaeEncoder | Int8Analysis:
        """`g_a`, with int8 products where model and CPU have them."""
        if not (isinstance(self.g_a, Analysis) and self._has_reaches and int8_products_exact()):
            return self.g_a
        in_float32 = analysis_network(self.weights)
        assert isinstance(in_float32, Analysis)
        return Int8Analysis(self.g_a, in_float32, self.weights.arrays)

    @cached_property
    def _float_synthesis(self) -> Synthesis | VaeDecoder:
        """`g_s` in floating point; of an integer synthesis, the same layers without any rounding."""
        return synthesis_network(self.weights).to(self.device, self.dtype)

    @cached_property
    def _pullback(self) -> Pullback:
        assert isinstance(self._float_synthesis, Synthesis)
        return Pullback(self._float_synthesis)

    def _pull_back(self, slope: Tensor, margin: Margin, hidden: Hidden) -> NDArray[np.float32]:
        """A derivative in unshuffled pixels (1, 192, H/8, W/8) → in the latents of the window, (C, h', w')."""
        last = slope.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        pulled = self._pullback(last, margin, hidden)[0].float().contiguous().cpu()
        return cast("NDArray[np.float32]", pulled.numpy())

    def _planes(self, latents: Tensor, margin: Margin, hidden: Hidden | None = None) -> Tensor:
        """Latents (B, C, h, w) float32 → unshuffled pixels (B, 192, H/8, W/8) float32, normalised."""
        dtype = torch.float32 if isinstance(self.g_s, IntegerSynthesis) else self.dtype
        x = latents.to(dtype).contiguous(memory_format=torch.channels_last)
        if isinstance(self.g_s, VaeDecoder):
            return self.g_s.window(x, margin).float()
        return self.g_s.window(x, margin, hidden).float()


def _on_device(stats: ChannelStats, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as (1, 3, 1, 1) float32 tensors."""
    mean, std = (torch.from_numpy(np.array(v)).to(device).view(1, 3, 1, 1) for v in (stats.mean, stats.std))
    return mean, std
