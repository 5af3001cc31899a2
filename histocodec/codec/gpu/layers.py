"""The layers of bytes that prior and synthesis share, on a GPU."""

from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from histocodec.codec.gpu import kernels

ROWS, COLUMNS, STEP = 128, 64, 64  # of a product, of a program
PLACES, CHANNELS = 32, 64


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: Any) -> None:
    """On the device of the first argument, a tensor."""
    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        kernel[grid](*arguments, **sizes, enable_fp_fusion=False)


def added_bytes(weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.int32]:
    """The bias of a layer whose activations are held 128 too low: (O,) or (…, O). Around a depthwise layer they are
    not, so its kernel makes up for it."""
    if weight.ndim == 3:
        return np.asarray(bias, np.int32)
    return np.asarray(bias + 128 * weight.astype(np.int32).sum(axis=1), np.int32)


class Layer:
    """(weight · a + bias) · factor, with weight (O, I) or of a depthwise layer (C, 3, 3) int8, bias (O,) int32, or
    (…, O) of which each chunk uses one, and factor (O,) float32. What it sees, and gives, is (B, h, w, channels)."""

    def __init__(
        self, weight: NDArray[np.int8], bias: NDArray[Any], factor: NDArray[Any], device: torch.device, *, then: Any
    ) -> None:
        self.depthwise, self.then = weight.ndim == 3, then
        laid = weight.reshape(len(weight), 9).T if self.depthwise else weight
        self.weight = torch.from_numpy(np.array(laid, np.int8, order="C")).to(device)
        self.bias = torch.from_numpy(np.array(bias, np.int32)).to(device)
        self.factor = torch.from_numpy(np.array(factor, np.float32)).to(device)

    def activation(self, a: Tensor, *, which: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Activations, int8. `which` (B,) int32 says whose bias a chunk uses; `out` may be a part of wider rows."""
        return self._run(a, torch.int8, self.then, which, None, out)

    def added(self, x: Tensor, a: Tensor) -> Tensor:
        """x + layer, float32"""
        return self._run(a, torch.float32, kernels.ADDED, None, x, None)

    def value(self, a: Tensor, upper: int) -> Tensor:
        """The layer, float32, of inputs whose first `upper` have eight more bits, which come before them."""
        return self._run(a, torch.float32, kernels.VALUE, None, None, None, upper)

    def total(self, a: Tensor, out: Tensor) -> None:
        """weight · a + bias, into `out` int32"""
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
            grid = triton.cdiv(count, PLACES), triton.cdiv(channels, CHANNELS)
            launch(
                kernels.depthwise, grid, a, self.weight, self.bias, self.factor, out, count, rows, columns, channels,
                out.stride(2), THEN=then, PLACES=PLACES, CHANNELS=CHANNELS,
            )  # fmt: skip
            return out
        grid = triton.cdiv(count, ROWS), triton.cdiv(outputs, COLUMNS)
        nothing = self.bias
        launch(
            kernels.dense, grid, a, self.weight, self.bias, nothing if which is None else which, self.factor,
            nothing if stream is None else stream, out, count, outputs, a.stride(2), out.stride(2),
            rows * columns, inputs=channels - upper, upper=upper, THEN=then, MANY=which is not None,
            ROWS=ROWS, COLUMNS=COLUMNS, STEP=STEP,
        )  # fmt: skip
        return out
