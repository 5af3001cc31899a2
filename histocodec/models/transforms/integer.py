"""The synthesis `g_s` in whole numbers, as a model file has it: which layers, which tensors, what is allowed.

The graph of `Synthesis` (`histocodec.models.transforms.network`), in which each convolution has weights
of one byte and sees activations of one byte. What flows past the blocks, the stream x, is fixed point. Each output of
a layer has a shift: its value is accumulator / 2^shift.

    a = clip(round(x), -128, 127)            what a block sees of the stream
    h = clip(round(expand(a)), 0, 255)
    h = clip(round(depthwise(h)), 0, 255)    where the block looks at its neighbours
    x = x + project(h)

`up` and `tail`, which nothing leads past, see v = x / 2^coarse, with a `coarse` for each channel, so that weak channels
do not make the weights of all coarse. They see w = clip(round(v), -1024, 1023), since tissue fits into a byte and what
is darker, as ink is, must not be cut off. Beside that they see of the channels that matter most round(16 · (v - w)),
limited to a byte, and round(w / 16), whose weights hold what the bytes of the others round away. Rounding is to the
nearest, ties to even.

Every accumulator and the stream itself stay below 2^24 of their units (`check_synthesis`, at loading), so float32 holds
them exactly: no order of summation, library or device can change a pixel.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.models.config import HyperConfig

MOST_SHIFT = 16  # most fractional bits of a shift
BYTE, WIDE = 128, 1024  # a stream's bytes are -128 … 127; what `up` and `tail` see, -1024 … 1023
EXACT = 1 << 24  # float32 holds every integer up to here
MOST_COARSE = 8
FINE = 16  # parts of the step of a byte, and of weights
FINE16, FINE8 = 64, 32  # channels of which `up` and `tail` see those, too
ENTRY_BITS = 6  # fractional bits with which latents enter
PARTS = ("weight", "bias", "shift")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class SynthesisLayer:
    """One convolution: `kind` "dense" (1×1) or "depthwise" (3×3). `outputs` of `up` are (row, column, channel)."""

    name: str
    kind: str
    inputs: int
    outputs: int

    @property
    def sees_stream(self) -> bool:
        """Signed numbers; else activations, from 0 to 255."""
        return self.name.endswith(("expand", "up", "tail"))

    @property
    def peak(self) -> int:
        """The largest |input|, or part of one, that any way of computing has to add up: bytes may be held 128 too high,
        and what `up` and `tail` see in several pieces."""
        return 2 * WIDE if self.name in ("up", "tail") else 255

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, 3, 3) if self.kind == "depthwise" else (self.outputs, self.inputs)


def synthesis_layers(config: HyperConfig) -> Iterator[SynthesisLayer]:
    """Every convolution of `g_s`, in order."""
    channels = config.latent_channels
    yield from _block_layers("blocks16", config.synthesis16, channels, config.hidden16 or channels)
    yield SynthesisLayer("up", "dense", config.latent_channels + 2 * fine16(config), 4 * config.width8)
    yield from _block_layers("blocks8", config.synthesis8, config.width8, config.width8)
    yield SynthesisLayer("tail", "dense", config.width8 + 2 * FINE8, 192)


def fine16(config: HyperConfig) -> int:
    return min(FINE16, config.latent_channels)


def _block_layers(name: str, blocks: tuple[bool, ...], channels: int, hidden: int) -> Iterator[SynthesisLayer]:
    for i, spatial in enumerate(blocks):
        yield SynthesisLayer(f"{name}.{i}.expand", "dense", channels, hidden)
        if spatial:
            yield SynthesisLayer(f"{name}.{i}.depthwise", "depthwise", hidden, hidden)
        yield SynthesisLayer(f"{name}.{i}.project", "dense", hidden, channels)


def synthesis_tensors(config: HyperConfig) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    """Name, shape and dtype of every tensor of the model file."""
    yield "g_s.scale", ((config.latent_channels,), "float32")
    yield "g_s.up.fine", ((fine16(config),), "int16")
    yield "g_s.up.coarse", ((config.latent_channels,), "uint8")
    yield "g_s.tail.fine", ((FINE8,), "int16")
    yield "g_s.tail.coarse", ((config.width8,), "uint8")
    for layer in synthesis_layers(config):
        yield f"g_s.{layer.name}.weight", (layer.weight_shape, "int8")
        yield f"g_s.{layer.name}.bias", ((layer.outputs,), "int32")
        yield f"g_s.{layer.name}.shift", ((layer.outputs,), "uint8")


def check_synthesis(config: HyperConfig, arrays: Arrays) -> None:
    """Raises FormatError where float32 might not hold a value exactly."""
    scale = arrays["g_s.scale"]
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise FormatError(f"g_s.scale goes from {scale.min()} to {scale.max()}; finite and above 0 is needed")
    for name, channels in (("up", config.latent_channels), ("tail", config.width8)):
        fine, coarse = arrays[f"g_s.{name}.fine"], arrays[f"g_s.{name}.coarse"]
        if fine.min() < 0 or fine.max() >= channels:
            raise FormatError(f"g_s.{name}.fine goes from {fine.min()} to {fine.max()}; 0 to {channels - 1} is allowed")
        if coarse.max() > MOST_COARSE:
            raise FormatError(f"g_s.{name}.coarse has {coarse.max()}; at most {MOST_COARSE} is allowed")
    reach = np.full(config.latent_channels, float(WIDE))  # of the stream
    step = np.full(config.latent_channels, float(ENTRY_BITS))  # its fractional bits
    for layer in synthesis_layers(config):
        shift = arrays[f"g_s.{layer.name}.shift"].astype(np.float64)
        if shift.max() > MOST_SHIFT:
            raise FormatError(f"g_s.{layer.name}.shift has {int(shift.max())}; at most {MOST_SHIFT} is allowed")
        peak = accumulator_peaks(layer, arrays[f"g_s.{layer.name}.weight"], arrays[f"g_s.{layer.name}.bias"])
        if peak.max() >= EXACT:
            raise FormatError(f"g_s.{layer.name}: its accumulator can reach {int(peak.max())}; below 2^24 is allowed")
        if layer.name == "up":
            reach, step = (v.reshape(4, -1).max(axis=0) for v in (peak * 2.0**-shift, shift))
        elif layer.name.endswith(".project"):
            reach, step = reach + peak * 2.0**-shift, np.maximum(step, shift)
            if (reach * 2.0**step).max() >= EXACT:
                raise FormatError(f"g_s.{layer.name}: the stream can need more than the 24 bits that are allowed")


def accumulator_peaks(layer: SynthesisLayer, weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float64]:
    """The largest |accumulator| of each output that any input can give."""
    sums = np.abs(weight.astype(np.float64)).reshape(layer.outputs, -1).sum(axis=1)
    return np.asarray(sums * layer.peak + np.abs(bias.astype(np.float64)))


def real_parameters(config: HyperConfig, arrays: Arrays) -> dict[str, NDArray[np.float32]]:
    """The state of a `Synthesis` that computes the same but for rounding and clipping."""
    entry = arrays["g_s.scale"].astype(np.float64)  # the stream at 1/16 is so many times what `Synthesis` has there
    state: dict[str, NDArray[np.float32]] = {}
    for layer in synthesis_layers(config):
        weight, bias = real_layer(layer, arrays)
        if layer.name in ("up", "tail"):
            coarse, fine = (arrays[f"g_s.{layer.name}.{part}"] for part in ("coarse", "fine"))
            weight[:, fine] += weight[:, -len(fine) :] / FINE  # what sees a sixteenth of the same
            weight = weight[:, : len(coarse)] * factors(coarse)
        if layer.name == "up" or (layer.name.startswith("blocks16") and layer.name.endswith(".expand")):
            weight = weight * entry
        elif layer.name.startswith("blocks16") and layer.name.endswith(".project"):
            weight, bias = weight / entry[:, None], bias / entry
        if layer.name == "up":
            weight = weight.reshape(2, 2, config.width8, -1).transpose(3, 2, 0, 1)
            bias = bias.reshape(4, config.width8).mean(axis=0)
        else:
            weight = weight[:, None] if layer.kind == "depthwise" else weight[:, :, None, None]
        state[f"{layer.name}.weight"] = np.ascontiguousarray(weight, np.float32)
        state[f"{layer.name}.bias"] = np.ascontiguousarray(bias, np.float32)
    return state


def real_layer(layer: SynthesisLayer, arrays: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight and bias of a layer with its shift undone, float64."""
    weight, bias, shift = (arrays[f"g_s.{layer.name}.{part}"] for part in PARTS)
    factor = factors(shift).astype(np.float64)
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), bias * factor


def factors(shift: NDArray[Any]) -> NDArray[np.float32]:
    """2^-shift"""
    return np.asarray(2.0 ** -shift.astype(np.float32), np.float32)
