"""The prior, evaluated exactly: integers held in floats, by numpy or torch, on any device, in any batch.

Every accumulator stays below 2^23 (`histocodec.models.prior.graph.check_accumulators`), so float32 sums are exact in
any order, and no choice of library, threads or batch can change a bit. float64 is the same computation with room to
spare and serves as the oracle. Nothing here may call a convolution, since libraries may choose algorithms for those
that round.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.models.config import GROUPS, HyperConfig
from histocodec.models.prior.graph import (
    HYPER_CLIP,
    LATENT_LIMIT,
    LINEAR_CLIP,
    MEAN_BITS,
    PHASE_MASK,
    POSITIONS,
    SCALES,
    Prior,
    layers,
)

RELUCTANCE = 5  # sixty-fourths of a step by which z moves towards its table's mean; see `hyper_latents`
Array = Any  # numpy.ndarray or torch.Tensor: the operations below are common to both


class IntegerPrior:
    """The integer parameters of one model as arrays of one library, and the graph that uses them.

    `arrays` are the model file's tensors. `xp` is the module `numpy` or `torch`, `dtype` names a float of that library,
    "float32" or "float64", and `device` is torch's. Thread-safe.
    """

    def __init__(
        self,
        config: HyperConfig,
        arrays: Mapping[str, NDArray[Any]],
        *,
        xp: ModuleType = np,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        self.config, self.graph, self.xp = config, Prior(config), xp
        self.dtype = getattr(xp, dtype)
        self._where = {} if xp is np else {"device": device}
        self.weight: dict[str, Array] = {}
        self.bias: dict[str, Array] = {}
        for layer in layers(config):
            weight = arrays[f"prior.{layer.name}.weight"]
            if layer.name.endswith(".heads"):
                weight = weight.reshape(GROUPS, -1, layer.inputs)
            self.weight[layer.name] = self.array(weight)
            self.bias[layer.name] = self.array(arrays[f"prior.{layer.name}.bias"])  # (1 or Q, outputs)
        self.base_index = self.array(arrays["prior.base_index"])  # (Q, C)
        self.hyper_mean = arrays["prior.hyper_mean"]  # (Q, Cz)
        positive = arrays["prior.compress"].astype(np.int16)
        self._compress = self.array(np.concatenate([-positive[:0:-1], positive]))  # by y + 1023

    def array(self, values: NDArray[Any]) -> Array:
        """Integers as floats of this library and dtype."""
        return self.xp.asarray(np.ascontiguousarray(values, np.float64), dtype=self.dtype, **self._where)

    def zeros(self, *shape: int) -> Array:
        """Zeros of this library and dtype."""
        return self.xp.zeros(shape, dtype=self.dtype, **self._where)

    def compress(self, y: Array) -> Array:
        """See `Ops.compress`."""
        index = self.xp.clip(y, -LINEAR_CLIP, LINEAR_CLIP) + LINEAR_CLIP
        return self._compress[index.astype(np.intp) if self.xp is np else index.long()]

    def ops(self, quality: NDArray[np.integer[Any]]) -> "IntegerOps":
        """Operations for a batch of chunks with these qualities (B,), integers in 0 … 100."""
        return IntegerOps(self, quality)

    def chunk(self, quality: int, shape: tuple[int, int, int], extent: tuple[int, int, int]) -> "IntegerChunk":
        """The prior of one chunk (C, h, w), as `histocodec.models.prior.fast.FastPrior.chunk` gives it."""
        return IntegerChunk(self, quality, shape, extent)


class IntegerOps:
    """`Ops` on arrays (B, channels, rows, columns); `histocodec.models.prior.graph.Ops` says what each operation is."""

    def __init__(self, prior: IntegerPrior, quality: NDArray[np.integer[Any]]) -> None:
        self.prior, self.quality = prior, quality
        self.base = prior.base_index[quality]  # (B, C)

    def _bias(self, name: str) -> Array:
        bias = self.prior.bias[name]
        return bias if bias.shape[0] == 1 else bias[self.quality]

    def linear(self, name: str, x: Array) -> Array:
        """See `Ops.linear`."""
        layer = self.prior.graph.layers[name]
        bias = self._bias(name)[:, :, None, None]
        if layer.kind == "depthwise":
            return self._depthwise(self.prior.weight[name], x) + bias
        batch, _, rows, columns = x.shape
        flat = x.reshape(batch, layer.inputs, rows * columns)
        return self.prior.xp.matmul(self.prior.weight[name], flat).reshape(batch, -1, rows, columns) + bias

    def _depthwise(self, weight: Array, x: Array) -> Array:
        batch, channels, rows, columns = x.shape
        padded = self.prior.zeros(batch, channels, rows + 2, columns + 2)
        padded[:, :, 1:-1, 1:-1] = x
        total = padded[:, :, :rows, :columns] * weight[:, :1, :1]
        for i in range(3):
            for j in range(3):
                if i or j:
                    total += padded[:, :, i : i + rows, j : j + columns] * weight[:, i : i + 1, j : j + 1]
        return total

    def activate(self, accumulator: Array, shift: int) -> Array:
        """See `Ops.activate`."""
        return self.prior.xp.clip(self.rescale(accumulator, shift), 0, 255)

    def rescale(self, accumulator: Array, shift: int) -> Array:
        """See `Ops.rescale`."""
        return self.prior.xp.floor(accumulator * 2.0**-shift + 0.5)

    def clip(self, x: Array, limit: int) -> Array:
        """See `Ops.clip`."""
        return self.prior.xp.clip(x, -limit, limit)

    def compress(self, y: Array) -> Array:
        """See `Ops.compress`."""
        return self.prior.compress(y)

    def join(self, a: Array, b: Array) -> Array:
        """See `Ops.join`."""
        return self.prior.xp.concatenate((a, b), 1)

    def fold(self, x: Array) -> Array:
        """See `Ops.fold`."""
        batch, channels, rows, columns = x.shape
        split = x.reshape(batch, channels, rows // 2, 2, columns // 2, 2)
        return self._move(split, (0, 1, 3, 5, 2, 4)).reshape(batch, 4 * channels, rows // 2, columns // 2)

    def unfold(self, x: Array) -> Array:
        """See `Ops.unfold`."""
        batch, channels, rows, columns = x.shape
        split = x.reshape(batch, channels // 4, 2, 2, rows, columns)
        return self._move(split, (0, 1, 4, 2, 5, 3)).reshape(batch, channels // 4, 2 * rows, 2 * columns)

    def _move(self, x: Array, order: tuple[int, ...]) -> Array:
        return np.transpose(x, order) if self.prior.xp is np else x.permute(order)

    def heads(self, name: str, x: Array, step: int) -> tuple[Array, Array]:
        """See `Ops.heads`."""
        order = [p ^ step for p in range(GROUPS)]
        weight = self.prior.weight[name][order]  # (4, 2·C/4, n)
        bias = self._bias(name).reshape(-1, GROUPS, weight.shape[1])[:, order]
        batch, width, rows, columns = x.shape
        inputs = self.prior.xp.stack([x[:, :, i::2, j::2].reshape(batch, width, -1) for i, j in POSITIONS], 1)
        outputs = self.prior.xp.matmul(weight, inputs) + bias[..., None]
        outputs = outputs.reshape(batch, GROUPS, 2, -1, rows // 2, columns // 2)
        return outputs[:, :, 0], outputs[:, :, 1]

    def cells(self, x: Array, step: int) -> Array:
        """See `Ops.cells`."""
        return self.prior.xp.stack([x[:, p ^ step :: GROUPS, i::2, j::2] for p, (i, j) in enumerate(POSITIONS)], 1)

    def place(self, y: Array, cells: Array, step: int) -> None:
        """The opposite of `cells`, into `y` (B, C, h, w) itself."""
        for p, (i, j) in enumerate(POSITIONS):
            y[:, p ^ step :: GROUPS, i::2, j::2] = cells[:, p]

    def add(self, a: Array, b: Array) -> Array:
        """See `Ops.add`."""
        return a + b

    def scale_index(self, deviation: Array, step: int) -> Array:
        """See `Ops.scale_index`."""
        base = self.prior.xp.stack([self.base[:, p ^ step :: GROUPS] for p in range(GROUPS)], 1)
        return self.prior.xp.clip(base[..., None, None] + deviation, 0, SCALES - 1)


class IntegerChunk:
    """One chunk on its way through the prior, with the interface of `histocodec.models.prior.fast.FastChunk`."""

    def __init__(
        self, prior: IntegerPrior, quality: int, shape: tuple[int, int, int], extent: tuple[int, int, int]
    ) -> None:
        self.prior, self.quality, self.ops = prior, quality, prior.ops(np.array([quality]))
        self.y = prior.zeros(1, *shape)
        self.h: Array = None
        self._cells = (GROUPS, shape[0] // GROUPS, shape[1] // 2, shape[2] // 2)
        self._coded = (slice(None), *(slice(end) for end in extent))

    @property
    def latents(self) -> NDArray[np.int16]:
        """The latents placed so far, (C, h, w)."""
        return np.asarray(_integers(self.y)[0], np.int16)

    def hyper_latents(self, y: NDArray[np.integer[Any]], *, reluctance: int = RELUCTANCE) -> NDArray[np.int64]:
        """See `FastChunk.hyper_latents`."""
        accumulator = _integers(self.prior.graph.h_a_accumulator(self.ops, self.prior.array(y[None])))[0]
        expected = self.prior.hyper_mean[self.quality][:, None, None]
        return hyper_latents(accumulator, expected, self.prior.graph.hyper_shift, reluctance)

    def begin(self, z: NDArray[np.int64]) -> None:
        """See `FastChunk.begin`."""
        self.h = self.prior.graph.h_s(self.ops, self.prior.array(z[None]))

    def parameters(self, k: int) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """See `FastChunk.parameters`."""
        mean, index = (_integers(v)[0][self._coded].ravel() for v in self.prior.graph.step(self.ops, k, self.y, self.h))
        return ((index << MEAN_BITS) + (mean & PHASE_MASK)).astype(np.uint16), (mean >> MEAN_BITS).astype(np.int32)

    def place(self, k: int, values: NDArray[np.int32]) -> None:
        """See `FastChunk.place`."""
        if values.size and (values.min() < -LATENT_LIMIT or values.max() >= LATENT_LIMIT):
            raise out_of_range(values)
        cells = np.zeros(self._cells, np.int64)
        coded = cells[self._coded]
        coded[...] = values.reshape(coded.shape)
        self.ops.place(self.y, self.prior.array(cells[None]), k)


def hyper_latents(
    accumulator: NDArray[np.integer[Any]], expected: NDArray[np.integer[Any]], shift: int, reluctance: int
) -> NDArray[np.int64]:
    """The hyper-latents z that an encoder codes, from `h_a`'s accumulator and the means of the tables of z in eighths,
    which broadcast.

    A decoder accepts any z. This one moves by `reluctance` sixty-fourths of a step towards the mean before it is
    rounded: `h_a` learnt by straight-through gradients, which leave many values close to where rounding tips over
    (Nagel et al. 2022, "Overcoming oscillations in quantization-aware training").
    """
    distance = (expected.astype(np.int64) << (shift - MEAN_BITS)) - accumulator
    most = (reluctance << shift) >> 6
    moved = accumulator + distance.clip(-most, most)
    return np.asarray(((moved + (1 << shift >> 1)) >> shift).clip(-HYPER_CLIP, HYPER_CLIP))


def out_of_range(values: NDArray[np.int32]) -> FormatError:
    """The error for latents that are not int16."""
    limits = f"{-LATENT_LIMIT} to {LATENT_LIMIT - 1} is allowed"
    return FormatError(f"a latent chunk holds values from {values.min()} to {values.max()}; {limits}")


def beyond(latents: NDArray[np.int16], dtype: "np.dtype[np.signedinteger]") -> FormatError:
    """The error for latents that a narrower type does not hold."""
    return FormatError(f"holds values from {latents.min()} to {latents.max()}, beyond {dtype}")


def _integers(values: Array) -> NDArray[np.int64]:
    """Integers that are held in floats of either library, as numpy integers."""
    as_numpy: NDArray[Any] = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    return as_numpy.astype(np.int64)
