"""Values in a model file that no codec can use are refused when it is parsed."""

from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load, save

from histocodec.errors import FormatError
from histocodec.models.weights import ModelWeights, parse_model
from tests.support.tiny import tiny_integer_weights, tiny_vae_weights, tiny_weights


def with_value(weights: ModelWeights, name: str, value: float, dtype: str | None = None) -> bytes:
    """The model's file with one value of one tensor replaced."""
    arrays = {key: array.copy() for key, array in load(weights.data).items()}
    arrays[name] = arrays[name].astype(dtype or arrays[name].dtype)
    arrays[name].flat[-1] = value
    notes = weights.notes | {"format": "histocodec.model/1", "id": "hostile", "family": weights.config.family}
    return save(arrays, metadata={**notes, "config": weights.config.to_json()})


def first_weight(weights: ModelWeights, part: str) -> str:
    """The name of a floating-point tensor of a transform."""
    return next(name for name, array in weights.arrays.items() if name.startswith(part) and array.dtype.kind == "f")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", [tiny_weights, tiny_integer_weights, tiny_vae_weights])
@pytest.mark.parametrize("name", ["gain", "inverse_gain", "g_a.", "g_s."])
def test_gains_and_weights_must_be_finite(name: str, model: Callable[[], ModelWeights], value: float) -> None:
    weights = model()
    name = first_weight(weights, name) if name.endswith(".") else name
    with pytest.raises(FormatError, match=f"hostile: tensor {name} has values that are not finite"):
        parse_model(with_value(weights, name, value), name="m")


def test_weights_must_be_finite_in_float32_too() -> None:
    weights = tiny_weights()
    with pytest.raises(FormatError, match="not finite in float32"):
        parse_model(with_value(weights, first_weight(weights, "g_a."), 1e300, "float64"), name="m")


def test_a_file_with_finite_values_is_a_model() -> None:
    weights = tiny_weights()
    assert parse_model(with_value(weights, "gain", 1.0), name="m").id == "hostile"
