"""The shape of a model: every size that its transforms, its prior and the format must agree on."""

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from histocodec.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

QUALITIES = 101  # quality indices 0 … 100; the command line's --quality is the index itself
GROUPS = 4  # channel groups, positions and steps of the quadtree context

CHUNK_PIXELS = 512  # a side of what the encoder codes as one chunk, whatever the model
MAX_BLOCKS = 16  # of each kind: thrice what any model has, so that a hostile config builds no giant network
BLOCKS = ("analysis8", "analysis16", "synthesis16", "synthesis8")
MOST_RATIO = 10_000  # that a model may aim at
MOST_LATENTS = 1020  # channels: a chunk's header has one byte for how many quads of them there are
PATCHES = (32, 64, 128)  # pixels a side of a `vae`'s patch, which is its stride
BLOCK = 16  # pixels a side of what becomes one position of a `vae`'s bottleneck

Quality = TypeVar("Quality", float, "Tensor")
Blocks = tuple[bool, ...]  # one residual block each; True where it looks at its neighbours (3×3)


@dataclass(frozen=True)
class HyperConfig:
    """Sizes of a `hyper` model. Channel counts are multiples of 4; `*_blocks` list residual blocks in order.

    The receptive field follows from the 3×3 blocks: one latent each at 1/16, half a latent each at 1/8.
    """

    family: ClassVar[str] = "hyper"
    stride: ClassVar[int] = 16  # pixels per latent, in both directions
    ratio: ClassVar[int | None] = None  # that `encode` aims at where nothing else is asked for
    chunk: ClassVar[int] = CHUNK_PIXELS // 16  # latents a side of a chunk, as the encoder makes them
    latent_channels: int = 256
    hyper_channels: int = 32
    hyper_width: int = 96
    context_width: int = 128
    width8: int = 192
    analysis8: Blocks = (True, True, True, True)
    analysis16: Blocks = (True, False, True, False, True, False)
    synthesis16: Blocks = (True, False, True, False)
    synthesis8: Blocks = (True, True)
    integer_synthesis: bool = False  # `g_s` in whole numbers; absent from the first files, as is the next
    hidden16: int | None = None  # activations in each block of `synthesis16`; None: as many as latent channels
    anchors: int = 9  # qualities at which gains and biases are learnt; the others are interpolated
    lambda_min: float = 5e-5  # rate–distortion weight at quality 0, MSE on the 0–255 scale
    lambda_max: float = 0.08  # … and at quality 100

    def __post_init__(self) -> None:
        _check_channels("latent_channels", self.latent_channels, MOST_LATENTS)
        for name in ("hyper_channels", "hyper_width", "context_width"):
            _check_channels(name, getattr(self, name))
        if type(self.width8) is not int or self.width8 != 192:
            raise FormatError(f"model config: width8 is {self.width8!r}; only 192 (8×8×3) is allowed")
        for name in BLOCKS:
            value = getattr(self, name)
            if not (isinstance(value, tuple) and len(value) <= MAX_BLOCKS and {*map(type, value)} <= {bool}):
                found = str(value)[:80]
                raise FormatError(f"model config: {name} is {found}; at most {MAX_BLOCKS} booleans are allowed")
        if type(self.integer_synthesis) is not bool:
            found = str(self.integer_synthesis)[:80]
            raise FormatError(f"model config: integer_synthesis is {found}; true or false is allowed")
        if self.hidden16 is not None:
            _check_channels("hidden16", self.hidden16)
        if not (isinstance(self.anchors, int) and 2 <= self.anchors <= QUALITIES):
            raise FormatError(f"model config: anchors is {self.anchors!r}; 2 to {QUALITIES} are allowed")

    @property
    def analysis_halo(self) -> int:
        """Latents beyond a block's edge, whose pixels `g_a` needs to compute it exactly."""
        return sum(self.analysis16) + -(-sum(self.analysis8) // 2)

    @property
    def synthesis_halo(self) -> int:
        """Latents beyond a block's edge that `g_s` needs to compute its pixels exactly."""
        return sum(self.synthesis16) + -(-sum(self.synthesis8) // 2)

    def rate_weight(self, quality: Quality) -> Quality:
        """λ of the loss λ·MSE + bpp, MSE in grey values², at a quality in 0 … 100. Of a tensor, element by element."""
        weight: Quality = self.lambda_min * (self.lambda_max / self.lambda_min) ** (quality / (QUALITIES - 1))
        return weight

    def fainter_by(self, quality: float, lower: float) -> float:
        """By what factor a slide must be fainter, to be coded at a `lower` quality (or stronger, at a higher one) with
        steps that are worth the same: Δ² goes with 1/λ."""
        return math.sqrt(self.rate_weight(lower) / self.rate_weight(quality))

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "HyperConfig":
        """Raises FormatError unless `text` is exactly what `to_json` writes for some valid config."""
        try:
            fields = json.loads(text)
            blocks = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
            return cls(**{**fields, **blocks})
        except (TypeError, ValueError, AttributeError, RecursionError) as exc:
            raise FormatError(f"model config is not understood: {exc}") from exc


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of a `vae` model: a ResNet-18 pair on independent patches of `stride` × `stride` pixels, each of which
    becomes `latent_channels` numbers. `widths` are the channels of the four stages, 64, 128, 256 and 512 in He et al.
    2016; `bottleneck` those between the last stage and the dense layer. With `shortcut` a linear path leads past the
    stages, from each 16 × 16 pixels to the bottleneck and back."""

    family: ClassVar[str] = "vae"
    analysis_halo: ClassVar[int] = 0  # patches know nothing of each other
    synthesis_halo: ClassVar[int] = 0
    latent_channels: int = 128
    stride: int = 64
    ratio: int | None = 512  # that `encode` aims at where nothing else is asked for
    widths: tuple[int, int, int, int] = (24, 48, 96, 192)
    bottleneck: int = 64
    shortcut: bool = False

    def __post_init__(self) -> None:
        _check_channels("latent_channels", self.latent_channels, MOST_LATENTS)
        if type(self.stride) is not int or self.stride not in PATCHES:
            allowed = ", ".join(map(str, PATCHES))
            raise FormatError(f"model config: stride is {self.stride!r}; one of {allowed} is allowed")
        if self.ratio is not None and not (type(self.ratio) is int and 1 <= self.ratio <= MOST_RATIO):
            raise FormatError(f"model config: ratio is {self.ratio!r}; null or 1 to {MOST_RATIO} is allowed")
        if not (isinstance(self.widths, tuple) and len(self.widths) == 4):
            raise FormatError(f"model config: widths is {str(self.widths)[:80]}; four numbers are needed")
        for width in self.widths:
            _check_channels("widths", width)
        _check_channels("bottleneck", self.bottleneck)
        if type(self.shortcut) is not bool:
            raise FormatError(f"model config: shortcut is {str(self.shortcut)[:80]}; true or false is allowed")

    @property
    def chunk(self) -> int:
        """Latents a side of a chunk, as the encoder makes them."""
        return CHUNK_PIXELS // self.stride

    @property
    def features(self) -> int:
        """Values a patch between the last stage and the dense layer."""
        return self.bottleneck * (self.stride // BLOCK) ** 2

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "VaeConfig":
        """Raises FormatError unless `text` is exactly what `to_json` writes for some valid config."""
        try:
            fields = json.loads(text)
            return cls(**{**fields, "widths": tuple(fields["widths"])})
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as exc:
            raise FormatError(f"model config is not understood: {exc}") from exc


ModelConfig = HyperConfig | VaeConfig


def _check_channels(name: str, value: object, most: int = 1024) -> None:
    if not (isinstance(value, int) and 4 <= value <= most and value % GROUPS == 0):
        raise FormatError(f"model config: {name} is {value!r}; a multiple of 4 from 4 to {most} is allowed")
