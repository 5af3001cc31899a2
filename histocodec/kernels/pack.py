"""Weights as the kernels of `products` take them: in whole groups of channels, in one piece of memory."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from histocodec.kernels.instructions import LANES, NAMES

GROUP = 64  # channels, of dense layers
LINE = 64  # bytes of a cache line


def padded(count: int, group: int = GROUP) -> int:
    """The next multiple of `group`."""
    return -(-count // group) * group


def aligned(size: int) -> NDArray[np.uint8]:
    """Memory (size,) uint8 that begins at a cache line; whatever was there is still in it."""
    memory = np.empty(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + size]


class Packer:
    """Collects parameters for the instructions of that number. Each method returns where in `finish` its values
    begin, in bytes."""

    def __init__(self, instructions: int) -> None:
        self._quarters = LANES[NAMES[instructions]] // 4  # pieces of 16 bytes of a vector
        self._parts: list[bytes] = []
        self._size = 0

    def dense(self, weight: NDArray[np.int8]) -> int:
        """A weight (outputs, inputs) int8, inputs a multiple of 4 → (outputs/64, inputs/4, 64, 4)."""
        outputs, inputs = weight.shape
        full = np.zeros((padded(outputs), inputs), np.int8)
        full[:outputs] = weight
        return self._add(full.reshape(-1, GROUP, inputs // 4, 4).transpose(0, 2, 1, 3))

    def depthwise(self, weight: NDArray[np.int8]) -> int:
        """A weight (channels, 3, 3) int8 → for each four vectors of channels (3 columns, channels, 3 rows and a zero),
        the channels in the order that interleaving rows leaves."""
        full = np.zeros((padded(len(weight)), 3, 4), np.int8)
        full[: len(weight), :, :3] = weight.transpose(0, 2, 1)
        mixed = self._interleaved(full)
        return self._add(mixed.reshape(-1, 16 * self._quarters, 3, 4).transpose(0, 2, 1, 3))

    def row(self, values: NDArray[Any], dtype: DTypeLike, *, interleaved: bool = False) -> int:
        """One number a channel, with zeros up to a whole group; `interleaved` as the channels of `depthwise`."""
        full = np.zeros(padded(len(values)), dtype)
        full[: len(values)] = values
        return self._add(self._interleaved(full) if interleaved else full)

    def _interleaved(self, values: NDArray[Any]) -> NDArray[Any]:
        """Vector n of four has of each 16 channels those from 4n to 4n + 3."""
        rest = values.shape[1:]
        split = values.reshape(-1, self._quarters, 4, 4, *rest)
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(-1, *rest)

    def finish(self) -> NDArray[np.uint8]:
        """Everything that was packed, beginning at a cache line."""
        memory = aligned(self._size)
        memory[:] = np.frombuffer(b"".join(self._parts), np.uint8)
        memory.setflags(write=False)
        return memory

    def _add(self, values: NDArray[Any]) -> int:
        start, data = self._size, np.ascontiguousarray(values).tobytes()
        data += bytes(-len(data) % LINE)
        self._parts.append(data)
        self._size += len(data)
        return start
