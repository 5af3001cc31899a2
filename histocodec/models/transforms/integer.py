"""The integer synthesis `g_s`, defined: which layers and tensors a model file has, and what is allowed in them.

It is the graph of `Synthesis` (`histocodec.models.transforms.network`) with int8 weights and byte-sized inputs. The
stream x, which flows past the residual blocks, is fixed point. Each output of a layer has a shift: its value is
accumulator / 2^shift.

    a = clip(round(x), -128, 127)            what a block sees of the stream
    h = clip(round(expand(a)), 0, 255)
    h = clip(round(depthwise(h)), 0, 255)    in spatial blocks
    x = x + project(h)

`up` and `tail`, the wide layers, have no stream beside them, so they see more than a byte: v = x / 2^coarse, with a
`coarse` for each channel, so that weak channels do not make the weights of all coarse. They see
w = clip(round(v), -1024, 1023), since tissue fits into a byte and what is darker, such as ink, must not be cut off. Of
the `fine` channels, those that matter most, they also see round(16 · (v - w)), limited to a byte, and round(w / 16),
whose weights hold what the int8 weights of the others lose by rounding. Rounding is to the nearest, ties to even.

Every accumulator and the stream itself stay below 2^24 of their units (`check_synthesis`, at loading), so float32 holds
them exactly: no order of summation, library or device can change a pixel. Quantisation with integer arithmetic after
Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.models.config import HyperConfig

MOST_SHIFT = 16  # most fractional bits of a shift
BYTE, WIDE = 128, 1024  # blocks see -128 … 127 of the stream; wide layers see -1024 … 1023
WIDE_LAYERS = ("up", "tail")
EXACT = 1 << 24  # float32 holds every integer up to here
MOST_COARSE = 8
FINE = 16  # parts into which a fine channel's step, and its weights', are divided
FINE16, FINE8 = 64, 32  # how many channels `up` and `tail` see finely
ENTRY_BITS = 6  # fractional bits with which latents enter
PARTS = ("weight", "bias", "shift")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class SynthesisLayer:
    """One convolution: `kind` "dense" (1×1) or "depthwise" (3×3). The outputs of `up` are (row, column, channel)."""

    name: str
    kind: str
    inputs: int
    outputs: int

    @property
    def sees_stream(self) -> bool:
        """Whether the inputs are signed numbers of the stream, not activations from 0 to 255."""
        return self.name.endswith(("expand", "up", "tail"))

    @property
    def peak(self) -> int:
        """The largest |input| that any engine adds up. Bytes may be held 128 too high, and wide inputs in pieces."""
        return 2 * WIDE if self.name in WIDE_LAYERS else 255

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(outputs, inputs), or (outputs, 3, 3) of a depthwise layer."""
        return (self.outputs, 3, 3) if self.kind == "depthwise" else (self.outputs, self.inputs)


def synthesis_layers(config: HyperConfig) -> Iterator[SynthesisLayer]:
    """Every convolution of `g_s`, in order."""
    channels = config.latent_channels
    yield from _block_layers("blocks16", config.synthesis16, channels, config.hidden16 or channels)
    yield SynthesisLayer("up", "dense", config.latent_channels + 2 * fine16(config), 4 * config.width8)
    yield from _block_layers("blocks8", config.synthesis8, config.width8, config.width8)
    yield SynthesisLayer("tail", "dense", config.width8 + 2 * FINE8, 192)


def fine16(config: HyperConfig) -> int:
    """How many channels `up` sees finely."""
    return min(FINE16, config.latent_channels)


def _block_layers(name: str, blocks: tuple[bool, ...], channels: int, hidden: int) -> Iterator[SynthesisLayer]:
    for i, spatial in enumerate(blocks):
        yield SynthesisLayer(f"{name}.{i}.expand", "dense", channels, hidden)
        if spatial:
            yield SynthesisLayer(f"{name}.{i}.depthwise", "depthwise", hidden, hidden)
        yield SynthesisLayer(f"{name}.{i}.project", "dense", hidden, channels)


def synthesis_tensors(config: HyperConfig) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    """Name, shape and dtype of every tensor that the model file has for `g_s`."""
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
    """Checks the tensors of a model file, whose names, shapes and dtypes are right. Raises FormatError where one is out
    of range or float32 might not hold a value exactly."""
    scale = arrays["g_s.scale"]
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise FormatError(f"g_s.scale goes from {scale.min()} to {scale.max()}; finite and above 0 is needed")
    for name, channels in (("up", config.latent_channels), ("tail", config.width8)):
        fine, coarse = arrays[f"g_s.{name}.fine"], arrays[f"g_s.{name}.coarse"]
        if fine.min() < 0 or fine.max() >= channels:
            raise FormatError(f"g_s.{name}.fine goes from {fine.min()} to {fine.max()}; 0 to {channels - 1} is allowed")
        if coarse.max() > MOST_COARSE:
            raise FormatError(f"g_s.{name}.coarse has {coarse.max()}; at most {MOST_COARSE} is allowed")
    peak_x = np.full(config.latent_channels, float(WIDE))  # of each channel of the stream
    bits_x = np.full(config.latent_channels, float(ENTRY_BITS))  # its fractional bits
    for layer in synthesis_layers(config):
        shift = arrays[f"g_s.{layer.name}.shift"].astype(np.float64)
        if shift.max() > MOST_SHIFT:
            raise FormatError(f"g_s.{layer.name}.shift has {int(shift.max())}; at most {MOST_SHIFT} is allowed")
        peak = accumulator_peaks(layer, arrays[f"g_s.{layer.name}.weight"], arrays[f"g_s.{layer.name}.bias"])
        if peak.max() >= EXACT:
            raise FormatError(f"g_s.{layer.name}: its accumulator can reach {int(peak.max())}; below 2^24 is allowed")
        if layer.name == "up":
            peak_x, bits_x = (v.reshape(4, -1).max(axis=0) for v in (peak * 2.0**-shift, shift))
        elif layer.name.endswith(".project"):
            peak_x, bits_x = peak_x + peak * 2.0**-shift, np.maximum(bits_x, shift)
            if (peak_x * 2.0**bits_x).max() >= EXACT:
                raise FormatError(f"g_s.{layer.name}: the stream can need more than the 24 bits that are allowed")


def accumulator_peaks(layer: SynthesisLayer, weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float64]:
    """The largest |accumulator| of each output (O,) that any input can give, for the weights and biases of a file."""
    sums = np.abs(weight.astype(np.float64)).reshape(layer.outputs, -1).sum(axis=1)
    return np.asarray(sums * layer.peak + np.abs(bias.astype(np.float64)))


def float_parameters(config: HyperConfig, arrays: Arrays) -> dict[str, NDArray[np.float32]]:
    """The `state_dict` of a `Synthesis` that computes the same but for rounding and clipping, float32."""
    entry = arrays["g_s.scale"].astype(np.float64)  # the stream at 1/16 is this many times that of `Synthesis`
    state: dict[str, NDArray[np.float32]] = {}
    for layer in synthesis_layers(config):
        weight, bias = float_layer(layer, arrays)
        if layer.name in WIDE_LAYERS:
            coarse, fine = (arrays[f"g_s.{layer.name}.{part}"] for part in ("coarse", "fine"))
            weight[:, fine] += weight[:, -len(fine) :] / FINE  # those of w / 16
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


def float_layer(layer: SynthesisLayer, arrays: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight and bias of a layer in units of its output, its shift undone; float64."""
    weight, bias, shift = (arrays[f"g_s.{layer.name}.{part}"] for part in PARTS)
    factor = factors(shift).astype(np.float64)
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), bias * factor


def factors(shift: NDArray[Any]) -> NDArray[np.float32]:
    """2^-shift, float32"""
    return np.asarray(2.0 ** -shift.astype(np.float32), np.float32)
