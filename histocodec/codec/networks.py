"""The networks of a model, built from the tensors in its file."""

import importlib.util
from collections.abc import Mapping
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from histocodec.errors import FormatError
from histocodec.models.config import HyperConfig, VaeConfig
from histocodec.models.transforms.exact import Engine
from histocodec.models.transforms.integer import float_parameters
from histocodec.models.transforms.network import Analysis, Synthesis
from histocodec.models.vae.network import VaeDecoder, VaeEncoder
from histocodec.models.weights import ModelWeights

Network = TypeVar("Network", bound=nn.Module)


def analysis_network(weights: ModelWeights) -> Analysis | VaeEncoder:
    """`g_a` of a model in float32 on the CPU. It takes unshuffled pixels, whatever the model's family.

    Raises UsageError where the model has none, and FormatError where the file's tensors do not fit its config.
    """
    config = weights.config
    with torch.device("meta"):  # a config from a hostile file allocates nothing that the file does not have
        network = VaeEncoder(config, folded=True) if isinstance(config, VaeConfig) else Analysis(config)
    return _filled(network, weights, "g_a", weights.transform("g_a"))


def synthesis_network(weights: ModelWeights) -> Synthesis | VaeDecoder:
    """`g_s` of a model in float32 on the CPU. Of a synthesis in integers, the same layers without any rounding.

    Raises FormatError where the file's tensors do not fit its config.
    """
    config = weights.config
    with torch.device("meta"):
        network = VaeDecoder(config, folded=True) if isinstance(config, VaeConfig) else Synthesis(config)
    if isinstance(config, HyperConfig) and config.integer_synthesis:
        return _filled(network, weights, "g_s", float_parameters(config, weights.arrays))
    return _filled(network, weights, "g_s", weights.transform("g_s"))


def gpu_engine(weights: ModelWeights, device: torch.device) -> Engine | None:
    """The Triton kernels of an integer synthesis. None where the device is no GPU, where Triton is not installed, and
    where the kernels were tried and are not exact."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from histocodec.codec.gpu.synthesis import TritonEngine, kernels_exact

    return TritonEngine(weights.hyper, weights.arrays, device) if kernels_exact(device) else None


def _filled(
    network: Network, weights: ModelWeights, part: Literal["g_a", "g_s"], arrays: Mapping[str, NDArray[np.float32]]
) -> Network:
    """`network`, which has no memory yet, with these tensors as its parameters."""
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as exc:
        raise FormatError(f"model {weights.id}: its {part} does not fit its config: {exc}") from exc
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return network.eval().requires_grad_(False)
