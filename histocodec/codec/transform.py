"""Pixels to latents and back, with one model's networks on one device. The analysis, and a synthesis in floating point,
are the only parts that may round differently from machine to machine; what is stored in a container is computed once,
from integers."""

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from histocodec.errors import FormatError, UnsupportedError, UsageError
from histocodec.geometry import Margin, Region, ceil_div
from histocodec.kernels.jit import jit
from histocodec.models.config import HyperConfig, VaeConfig
from histocodec.models.transforms.analysis import ByteAnalysis
from histocodec.models.transforms.fast import Engine, IntegerSynthesis, bytes_exact
from histocodec.models.transforms.integer import real_parameters
from histocodec.models.transforms.network import Analysis, Hidden, Pullback, Synthesis
from histocodec.models.vae.network import VaeDecoder, VaeEncoder
from histocodec.models.weights import ModelWeights
from histocodec.normalise import ChannelStats
from histocodec.slide import Colour, Pixels


@jit
def _blocks_of(pixels: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32]) -> NDArray[np.float32]:
    """`ChannelStats.normalise` and an unshuffle by 8 of (H, W, 3) uint8, in one pass: (H/8, W/8, 192) float32."""
    rows, columns = pixels.shape[0] // 8, pixels.shape[1] // 8
    out = np.empty((rows, columns, 192), np.float32)
    scale = 1 / std
    for row in range(rows):
        for column in range(columns):
            for i in range(8):
                for j in range(8):
                    for colour in range(3):
                        value = pixels[8 * row + i, 8 * column + j, colour]
                        out[row, column, 64 * colour + 8 * i + j] = (value - mean[colour]) * scale[colour]
    return out


@jit
def _pixels_of(blocks: NDArray[np.float32], mean: NDArray[np.float32], std: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The other way round: a shuffle by 8 of (h, w, 192) float32 and `ChannelStats.denormalise`, (8h, 8w, 3) uint8."""
    rows, columns = blocks.shape[:2]
    out = np.empty((8 * rows, 8 * columns, 3), np.uint8)
    block = np.empty(192, np.uint8)
    for row in range(rows):
        for column in range(columns):
            for colour in range(3):  # apart from moving it, so that numba makes it into vectors
                for at in range(64 * colour, 64 * colour + 64):
                    value = np.rint(blocks[row, column, at] * std[colour] + mean[colour])
                    block[at] = np.uint8(min(max(value, np.float32(0)), np.float32(255)))
            for i in range(8):
                for j in range(8):
                    for colour in range(3):
                        out[8 * row + i, 8 * column + j, colour] = block[64 * colour + 8 * i + j]
    return out


@jit
def _differences_of(
    blocks: NDArray[np.float32], pixels: Pixels, mean: NDArray[np.float32], std: NDArray[np.float32], per: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The squared error of unshuffled pixels (h, w, 192) float32, normalised, against (H, W, 3) uint8 from which they
    may reach further: the sum of `per` × `per` blocks each, and its derivative in every number."""
    rows, columns = blocks.shape[:2]
    error, slope = np.zeros((-(-rows // per), -(-columns // per))), np.zeros_like(blocks)
    for row in range(rows):
        for column in range(columns):
            total = np.float32(0)
            for i in range(min(8, pixels.shape[0] - 8 * row)):
                for j in range(min(8, pixels.shape[1] - 8 * column)):
                    for colour in range(3):
                        at = 64 * colour + 8 * i + j
                        value = np.float32(pixels[8 * row + i, 8 * column + j, colour])
                        difference = blocks[row, column, at] * std[colour] + mean[colour] - value
                        total += difference * difference
                        slope[row, column, at] = 2 * difference * std[colour]
            error[row // per, column // per] += total
    return error, slope


MOST_MOVES = 4  # of the mean: the first is nearly always right

Network = TypeVar("Network", bound=nn.Module)


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N" → a device that is there. Raises UsageError or UnsupportedError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise UsageError(f"device {name!r}; auto, cpu, cuda or cuda:N is allowed") from exc
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r}; auto, cpu, cuda or cuda:N is allowed")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(f"device {name!r} is not there: {torch.cuda.device_count()} CUDA devices were found")
    return device


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware (a third of float32's time on a CPU), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def other_dtype(device: torch.device) -> torch.dtype:
    """What `fastest_dtype` is not: the arithmetic of a container that comes from another kind of machine."""
    return torch.float32 if fastest_dtype(device) == torch.bfloat16 else torch.bfloat16


class Transform:
    """`g_a` and `g_s` of one model on one device, for windows of a level. Thread-safe once made."""

    def __init__(self, weights: ModelWeights, device: torch.device, *, dtype: torch.dtype | None = None) -> None:
        self.weights, self.device = weights, device
        self.dtype = fastest_dtype(device) if dtype is None else dtype
        self._in_bytes = dtype is None and device.type == "cpu"  # the analysis, where it can be
        self.by_kernels = False  # the synthesis by those of `histocodec.codec.gpu`
        self.g_a = _analysis(weights).to(device, self.dtype)
        self.g_s: Synthesis | VaeDecoder | IntegerSynthesis
        if isinstance(weights.config, HyperConfig) and weights.config.integer_synthesis:
            engine = _gpu_engine(weights, device)
            self.by_kernels = engine is not None
            self.g_s = IntegerSynthesis(weights.config, weights.arrays, device, engine=engine)
        else:
            self.g_s = self._real

    @property
    def exact(self) -> bool:
        """Whether a pixel is the same in whatever window it is synthesised."""
        return isinstance(self.g_s, IntegerSynthesis)

    @cached_property
    def _analyser(self) -> Analysis | VaeEncoder | ByteAnalysis:
        """What a writer runs; a reader never asks for it."""
        known = any(name.startswith("reach.") for name in self.weights.arrays)
        if not (isinstance(self.g_a, Analysis) and known and self._in_bytes and bytes_exact()):
            return self.g_a
        exact = _analysis(self.weights)
        assert isinstance(exact, Analysis)
        return ByteAnalysis(self.g_a, exact, self.weights.arrays)

    @cached_property
    def _real(self) -> Synthesis | VaeDecoder:
        """The synthesis in floating point; of one in whole numbers, what it would be without rounding."""
        return _synthesis(self.weights).to(self.device, self.dtype)

    @cached_property
    def _pullback(self) -> Pullback:
        """What a search for cheaper latents runs."""
        assert isinstance(self._real, Synthesis)
        return Pullback(self._real)

    def analyse(self, pixels: NDArray[np.uint8], margin: Margin, stats: ChannelStats) -> NDArray[np.float32]:
        """pixels (H, W, 3) uint8, H and W multiples of the stride, margin in latents included → (C, h, w) float32
        without it, before gains."""
        with torch.inference_mode():
            if self.device.type == "cpu":
                blocks = torch.from_numpy(_blocks_of(pixels, stats.mean, stats.std)).permute(2, 0, 1)[None]
            else:
                mean, std = _statistics(stats, self.device)
                planes = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1)[None].float()
                blocks = F.pixel_unshuffle((planes - mean) / std, 8)
            x = blocks.to(self.dtype).contiguous(memory_format=torch.channels_last)
            y = self._analyser.window(x, margin)
            return cast("NDArray[np.float32]", y[0].float().contiguous().cpu().numpy())

    def flat(self, colour: Colour, stats: ChannelStats) -> NDArray[np.float32]:
        """One position, (C,), of `analyse` in an area of one colour."""
        halo, stride = self.weights.config.analysis_halo, self.weights.config.stride
        pixels = np.full(((2 * halo + 1) * stride, (2 * halo + 1) * stride, 3), colour, np.uint8)
        return self.analyse(pixels, Margin(halo, halo, halo, halo), stats)[:, 0, 0]

    def synthesise(
        self, windows: Sequence[NDArray[np.float32]], margin: Margin, stats: ChannelStats
    ) -> list[NDArray[np.uint8]]:
        """Windows (C, h, w) float32, gains undone, all of one shape and margin → pixels (H, W, 3) uint8 each."""
        with torch.inference_mode():
            each = [torch.from_numpy(window) for window in windows]
            latents = each[0][None] if len(each) == 1 else torch.stack(each)
            return self.pixels(self._blocks(latents.to(self.device), margin), stats)

    @staticmethod
    def pixels(blocks: Tensor, stats: ChannelStats) -> list[NDArray[np.uint8]]:
        """Unshuffled pixels (B, 192, h, w) float32, normalised → (8h, 8w, 3) uint8 each."""
        if blocks.device.type == "cpu":
            each = blocks.permute(0, 2, 3, 1).contiguous().numpy()
            return [_pixels_of(one, stats.mean, stats.std) for one in each]
        mean, std = _statistics(stats, blocks.device)
        rounded = (F.pixel_shuffle(blocks, 8) * std + mean).round_().clamp_(0, 255).to(torch.uint8)
        return list(rounded.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def decoded(self, latents: Tensor, margin: Margin, stats: ChannelStats) -> Tensor:
        """`synthesise` of one batch (B, C, h, w) float → (B, 3, H, W) float, neither rounded nor clipped."""
        return self._shown(self._blocks(latents, margin), stats)

    def difference(
        self, latents: Tensor, margin: Margin, stats: ChannelStats, pixels: Pixels, *, slope: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        """The squared error of latents (1, C, h', w') float, decoded, not rounded or clipped, against pixels
        (H, W, 3) uint8 of the window without its margin: the sum for each latent's position (h, w), and the derivative
        of all of it in each latent of the window (C, h', w') where asked for. Of a `hyper` model."""
        assert not isinstance(self.g_s, VaeDecoder)
        hidden: Hidden = []
        with torch.inference_mode():
            blocks = self._blocks(latents, margin, hidden)[0].permute(1, 2, 0).contiguous().cpu().numpy()
            per = self.weights.config.stride // 8
            error, change = _differences_of(blocks, pixels, stats.mean, stats.std, per)
            if not slope:
                return error, None
            return error, self._pulled_back(torch.from_numpy(change).permute(2, 0, 1)[None], margin, hidden)

    def bend(self, latents: Tensor, field: Tensor, stats: ChannelStats) -> NDArray[np.float32]:
        """JᵀJ · field (C, h, w), with J the derivative of the pixels in the latents, at these latents (1, C, h, w)."""
        assert isinstance(self._real, Synthesis)
        hidden: Hidden = []
        with torch.inference_mode():
            at, more, less = (
                x.to(self.dtype).contiguous(memory_format=torch.channels_last)
                for x in (latents, latents + field / 2, latents - field / 2)
            )
            self._real.window(at, Margin(), hidden)
            change = self._real.window(more, Margin()) - self._real.window(less, Margin())
            variance = torch.from_numpy(stats.std**2).to(change.device).repeat_interleave(64)[None, :, None, None]
            return self._pulled_back(change * variance, Margin(), hidden)

    def _pulled_back(self, slope: Tensor, margin: Margin, hidden: Hidden) -> NDArray[np.float32]:
        last = slope.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        pulled = self._pullback(last, margin, hidden)[0].float().contiguous().cpu()
        return cast("NDArray[np.float32]", pulled.numpy())

    def _blocks(self, latents: Tensor, margin: Margin, hidden: Hidden | None = None) -> Tensor:
        """Latents (B, C, h, w) float32 → unshuffled pixels (B, 192, H/8, W/8) float32"""
        dtype = torch.float32 if isinstance(self.g_s, IntegerSynthesis) else self.dtype
        x = latents.to(dtype).contiguous(memory_format=torch.channels_last)
        if isinstance(self.g_s, VaeDecoder):
            return self.g_s.window(x, margin).float()
        return self.g_s.window(x, margin, hidden).float()

    def _shown(self, blocks: Tensor, stats: ChannelStats) -> Tensor:
        mean, std = _statistics(stats, self.device)
        return F.pixel_shuffle(blocks, 8) * std + mean

    def aligned(self, stats: ChannelStats, colour: Colour, quality: int) -> ChannelStats:
        """`stats` with the mean moved a little, so that an area of one `colour` is decoded as that colour. Quantised
        under statistics that know nothing of it, it would come out several grey values off at low qualities. At high
        ones a moved mean moves the latents, too, and the best of a few is taken."""
        reach = self.weights.config.synthesis_halo
        best, least, known = stats, np.inf, None
        for _ in range(MOST_MOVES):
            y = self.flat(colour, stats)[:, None, None]
            latents = quantise(y, self.weights.gain(quality), np.dtype(np.int16))
            if known is not None and np.array_equal(latents, known):
                return stats
            known = latents
            scaled = (latents * self.weights.inverse_gain(quality)[:, None, None]).astype(np.float32)
            window = torch.from_numpy(np.tile(scaled, (1, 2 * reach + 1, 2 * reach + 1))[None]).to(self.device)
            with torch.inference_mode():
                decoded = self.decoded(window, Margin(reach, reach, reach, reach), stats)[0].mean(dim=(1, 2))
            off = np.array(colour, np.float32) - decoded.cpu().numpy()
            if (off**2).sum() < least:
                best, least = stats, float((off**2).sum())
            stats = ChannelStats(stats.mean + off, stats.std)
        return best


def _statistics(stats: ChannelStats, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as (1, 3, 1, 1) float32"""
    mean, std = (torch.from_numpy(np.array(v)).to(device).view(1, 3, 1, 1) for v in (stats.mean, stats.std))
    return mean, std


def whole_latents(pixels: Pixels, stride: int) -> Pixels:
    """Pixels (H, W, 3) with sides that are multiples of `stride`: the last row and column, repeated as often as
    needed."""
    down, across = -pixels.shape[0] % stride, -pixels.shape[1] % stride
    return np.pad(pixels, ((0, down), (0, across), (0, 0)), mode="edge") if down or across else pixels


def margin_of(inner: Region, outer: Region, stride: int) -> Margin:
    """How far `outer` reaches beyond `inner`, in latents. Both start at multiples of `stride` pixels."""
    return Margin(
        (inner.y - outer.y) // stride,
        (inner.x - outer.x) // stride,
        ceil_div(outer.y_end, stride) - ceil_div(inner.y_end, stride),
        ceil_div(outer.x_end, stride) - ceil_div(inner.x_end, stride),
    )


def latents_of(inner: Region, outer: Region, stride: int) -> tuple[slice, slice, slice]:
    """The latents of `inner` in those of `outer`, (C, h, w). Both start at multiples of `stride` pixels."""
    top, left = (inner.y - outer.y) // stride, (inner.x - outer.x) // stride
    rows, columns = ceil_div(inner.height, stride), ceil_div(inner.width, stride)
    return slice(None), slice(top, top + rows), slice(left, left + columns)


def _gpu_engine(weights: ModelWeights, device: torch.device) -> Engine | None:
    """Products of bytes on a GPU that has Triton, and where they are exact."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from histocodec.codec.gpu.synthesis import TritonEngine, kernels_exact

    return TritonEngine(weights.hyper, weights.arrays, device) if kernels_exact(device) else None


def _analysis(weights: ModelWeights) -> Analysis | VaeEncoder:
    """`g_a` of a model in float32. Takes unshuffled pixels, whatever its family."""
    config = weights.config
    with torch.device("meta"):  # a config from a hostile file allocates nothing that the file does not have
        network = VaeEncoder(config, folded=True) if isinstance(config, VaeConfig) else Analysis(config)
    return _filled(network, weights, "g_a", weights.transform("g_a"))


def _synthesis(weights: ModelWeights) -> Synthesis | VaeDecoder:
    """`g_s` likewise; of one in whole numbers without rounding."""
    config = weights.config
    with torch.device("meta"):
        network = VaeDecoder(config, folded=True) if isinstance(config, VaeConfig) else Synthesis(config)
    if isinstance(config, HyperConfig) and config.integer_synthesis:
        return _filled(network, weights, "g_s", real_parameters(config, weights.arrays))
    return _filled(network, weights, "g_s", weights.transform("g_s"))


def _filled(
    network: Network, weights: ModelWeights, part: Literal["g_a", "g_s"], arrays: Mapping[str, NDArray[np.float32]]
) -> Network:
    """`network`, which has no memory of its own, with these tensors. Raises FormatError where they do not fit."""
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as exc:
        raise FormatError(f"model {weights.id}: its {part} does not fit its config: {exc}") from exc
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return network.eval().requires_grad_(False)


def quantise(
    y: NDArray[np.float32], gain: NDArray[np.float32], dtype: np.dtype[np.signedinteger]
) -> NDArray[np.signedinteger]:
    """y (C, h, w) before gains → round(gain · y), half up, within what `dtype` holds."""
    limits = np.iinfo(dtype)
    rounded = np.floor(y * gain[:, None, None] + 0.5)
    return np.asarray(rounded.clip(limits.min, limits.max), dtype)
