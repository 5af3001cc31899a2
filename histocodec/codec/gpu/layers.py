"""Layers of int8 products on a GPU, which the prior and the synthesis share."""

from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from histocodec.codec.gpu import network_kernels as kernels

ROWS, COLUMNS, STEP = 128, 64, 64  # of a matrix product in one program
POSITIONS, CHANNELS = 32, 64  # of a depthwise layer in one program


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
    """Run a Triton kernel on the device of the first argument, a tensor."""
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        kernel[grid](*arguments, **sizes, enable_fp_fusion=False)


def offset_bias(weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.int32]:
    """The bias, (O,) or (…, O) int32, of a layer whose activations are held 128 too low. That of a depthwise layer is
    returned as it is, since its kernel adds the 128 itself: beyond the edge lie true zeros."""
    if weight.ndim == 3:
        return np.asarray(bias, np.int32)
    return np.asarray(bias + 128 * weight.astype(np.int32).sum(axis=1), np.int32)


class Layer:
    """(weight · a + bias) · factor, of inputs (B, h, w, channels) int8.

    `weight` is int8, (O, I), or (C, 3, 3) for a depthwise layer; `bias` is int32, (O,), or (…, O), of which each chunk
    uses one; `factor` is (O,) float32, powers of two. `then` says how activations are rounded: `EVEN` or `UP` of
    `network_kernels`.
    """

    def __init__(
        self, weight: NDArray[np.int8], bias: NDArray[Any], factor: NDArray[Any], device: torch.device, *, then: Any
    ) -> None:
        self.depthwise, self.then = weight.ndim == 3, then
        laid_out = weight.reshape(len(weight), 9).T if self.depthwise else weight
        self.weight = torch.from_numpy(np.array(laid_out, np.int8, order="C")).to(device)
        self.bias = torch.from_numpy(np.array(bias, np.int32)).to(device)
        self.factor = torch.from_numpy(np.array(factor, np.float32)).to(device)

    def activation(self, a: Tensor, *, which: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """clip(round(layer(a)), 0, 255), held 128 too low, (B, h, w, O) int8. `which` (B,) int32 says whose bias each
        chunk uses. `out` may be a part of wider rows."""
        return self._run(a, torch.int8, self.then, which, None, out)

    def added(self, x: Tensor, a: Tensor) -> Tensor:
        """x + layer(a), (B, h, w, O) float32"""
        return self._run(a, torch.float32, kernels.ADDED, None, x, None)

    def value(self, a: Tensor, upper: int) -> Tensor:
        """layer(a), (B, h, w, O) float32, of inputs whose first `upper` have eight more bits, which come before
        them."""
        return self._run(a, torch.float32, kernels.VALUE, None, None, None, upper)

    def total(self, a: Tensor, out: Tensor) -> None:
        """Write weight · a + bias into `out` (B, h, w, O) int32."""
        self._run(a, torch.int32, kernels.TOTAL, None, None, out)

    def _run(
        self, a: Tensor, dtype: torch.dtype, then: Any, which: Tensor | None, stream: Tensor | None,
        out: Tensor | None, upper: int = 0,
    ) -> Tensor:  # fmt: skip
        batch, rows, columns, channels = a.shape
        outputs = len(self.factor)
        if out is None:
            out = torch.empty((batch, rows, columns, outputs), dtype=dtype, device=a.device)
        count = batch * rows * columns
        if self.depthwise:
            grid = triton.cdiv(count, POSITIONS), triton.cdiv(channels, CHANNELS)
            launch(
                kernels.depthwise, grid, a, self.weight, self.bias, self.factor, out, count, rows, columns, channels,
                out.stride(2), THEN=then, POSITIONS=POSITIONS, CHANNELS=CHANNELS,
            )  # fmt: skip
            return out
        grid = triton.cdiv(count, ROWS), triton.cdiv(outputs, COLUMNS)
        unused = self.bias
        launch(
            kernels.dense, grid, a, self.weight, self.bias, unused if which is None else which, self.factor,
            unused if stream is None else stream, out, count, outputs, a.stride(2), out.stride(2),
            rows * columns, inputs=channels - upper, upper=upper, THEN=then, MANY=which is not None,
            ROWS=ROWS, COLUMNS=COLUMNS, STEP=STEP,
        )  # fmt: skip
        return out
