"""From a trained `hyper` model to a model file: parameters rounded to the integers that training already used."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as to_safetensors
from torch import nn

from histocodec.entropy import TableSet, gaussian_tables
from histocodec.models.config import QUALITIES, HyperConfig
from histocodec.models.hyper import HyperModel
from histocodec.models.prior.graph import INPUT_BITS, LINEAR_CLIP, MEAN_BITS, SCALE_BITS, SCALES, SMALLEST_SCALE
from histocodec.models.transforms.training import TrainableIntegerSynthesis
from histocodec.models.weights import FORMAT, ModelWeights, parse_model


def gaussian_table_set() -> TableSet:
    """The frequency tables that training assumes: a Gaussian for every scale index and every eighth of a mean."""
    return gaussian_tables([SMALLEST_SCALE * 2 ** (i / 2**SCALE_BITS) for i in range(SCALES)], 1 << MEAN_BITS)


@torch.no_grad()
def export_model(
    model: HyperModel,
    model_id: str,
    *,
    tables: TableSet | None = None,
    ranges: Mapping[str, NDArray[Any]] | None = None,
    notes: Mapping[str, str] | None = None,
) -> ModelWeights:
    """The model file of a trained model, parsed and checked; `.data` holds its bytes.

    `tables` are by default those that training assumes. With `ranges`, the tensors of
    `histocodec.train.finish.activation_ranges`, encoders can run `g_a` by int8 products. `notes` become metadata beside
    the id, such as steps and commit. Transforms are stored as float16, an integer synthesis as integers. Moves the
    model's prior to the CPU.
    """
    prior = model.prior
    quality = torch.arange(QUALITIES, dtype=torch.float32)
    log_gain, log_inverse = (gain.cpu() for gain in model.gains(quality.to(next(model.parameters()).device)))
    prior = prior.to("cpu")
    arrays: dict[str, NDArray[Any]] = {}
    for layer in prior.graph.layers.values():
        arrays[f"prior.{layer.name}.weight"] = prior.integer_weight(layer).numpy().astype(np.int8)
        arrays[f"prior.{layer.name}.bias"] = prior.integer_bias(layer, quality).numpy().astype(np.int32)
    arrays["prior.base_index"] = prior.base_index(log_gain).numpy().astype(np.int16)
    mean, index = prior.hyper_parameters(quality)
    arrays["prior.hyper_mean"] = mean.numpy().astype(np.int16)
    arrays["prior.hyper_index"] = index.numpy().astype(np.uint8)
    compressed = np.floor(2**INPUT_BITS * np.arcsinh(np.arange(LINEAR_CLIP + 1)) + 0.5)
    arrays["prior.compress"] = compressed.astype(np.uint8)
    arrays["gain"] = log_gain.exp().numpy().astype(np.float32)
    arrays["inverse_gain"] = log_inverse.exp().numpy().astype(np.float32)
    tables = tables or gaussian_table_set()
    arrays |= {"tables.low": tables.low, "tables.size": tables.size, "tables.freq": tables.freq}
    if isinstance(model.g_s, TrainableIntegerSynthesis):
        arrays |= model.g_s.arrays()
    else:
        arrays |= _float16_tensors("g_s", model.g_s)
    arrays |= _float16_tensors("g_a", model.g_a) | dict(ranges or {})
    config = replace(model.config, integer_synthesis=isinstance(model.g_s, TrainableIntegerSynthesis))
    return model_file(arrays, config, model_id, notes or {})


def model_file(
    arrays: Mapping[str, NDArray[Any]], config: HyperConfig, model_id: str, notes: Mapping[str, str]
) -> ModelWeights:
    """The model file of these tensors, parsed and checked. Raises FormatError where they do not fit the config."""
    metadata = {**notes, "format": FORMAT, "id": model_id, "config": config.to_json()}
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return parse_model(to_safetensors(tensors, metadata=metadata), name=model_id)


def _float16_tensors(part: str, network: nn.Module) -> dict[str, NDArray[Any]]:
    state = network.state_dict().items()
    return {f"{part}.{name}": tensor.detach().cpu().contiguous().numpy().astype(np.float16) for name, tensor in state}
