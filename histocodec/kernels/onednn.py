"""Convolutions by oneDNN's int8 products on a CPU, called as PyTorch's own compiler calls them.

Tensors are channels last in memory. Whether the products are exact depends on the processor; see
`histocodec.models.transforms.fast.int8_products_exact`.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TYPICAL_SIDE = 64  # of an input: oneDNN chooses the layout of weights for it, and is slow without it


class Int8Layer:
    """scale · (weight · a) + bias, for a (B, C, h, w) uint8.

    `weight` is int8, (O, C), or (C, 3, 3) for a depthwise layer; `scale` and `bias` are (O,) float32. With
    `signed_input`, a holds signed bytes, 128 too high; otherwise activations 0 … 255. Raises AttributeError,
    RuntimeError or NotImplementedError where this build of PyTorch has no such products.
    """

    def __init__(
        self, weight: NDArray[np.int8], scale: NDArray[Any], bias: NDArray[Any], *, signed_input: bool
    ) -> None:
        depthwise = weight.ndim == 3
        self._groups, self._padding = (len(weight), [1, 1]) if depthwise else (1, [0, 0])
        shaped = torch.from_numpy(np.array(weight[:, None] if depthwise else weight[:, :, None, None]))
        self._scales = torch.from_numpy(np.array(scale, np.float32))
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)  # zero points: oneDNN demands them
        size = [1, len(weight) if depthwise else weight.shape[1], TYPICAL_SIDE, TYPICAL_SIDE]
        self._weight = torch.ops.onednn.qconv_prepack(
            shaped, self._scales, 1.0, 0, [1, 1], self._padding, [1, 1], self._groups, size
        )
        sums = torch.from_numpy(weight.astype(np.int64).reshape(len(weight), -1).sum(axis=1))
        self._offset = -128 * sums * self._scales  # makes up for bytes that are 128 too high
        self._bias = torch.from_numpy(np.array(bias, np.float32)) + (self._offset if signed_input else 0)

    def activation(self, a: Tensor) -> Tensor:
        """clip(round(layer(a)), 0, 255), uint8"""
        return self._run(a, torch.uint8, "relu")

    def output(self, a: Tensor) -> Tensor:
        """layer(a), float32"""
        return self._run(a, torch.float32, "none")

    def added(self, x: Tensor, a: Tensor) -> Tensor:
        """x + layer(a), written over x (B, O, h, w) float32"""
        return self._add(x, a, 1.0, self._bias)

    def added_without_bias(self, x: Tensor, a: Tensor, unit: float, *, signed_input: bool) -> Tensor:
        """x + scale · (weight · unit · a), written over x (B, O, h, w) float32"""
        return self._add(x, a, unit, unit * self._offset if signed_input else None)

    def _run(self, a: Tensor, dtype: torch.dtype, then: str) -> Tensor:
        result: Tensor = torch.ops.onednn.qconv_pointwise(
            a, 1.0, 0, self._weight, self._scales, self._zeros, self._bias, [1, 1], self._padding, [1, 1], self._groups,
            1.0, 0, dtype, then, [], "",
        )  # fmt: skip
        return result

    def _add(self, x: Tensor, a: Tensor, unit: float, bias: Tensor | None) -> Tensor:
        result: Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            a, unit, 0, self._weight, self._scales, self._zeros, x, bias, [1, 1], self._padding, [1, 1], self._groups,
            1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
        return result
