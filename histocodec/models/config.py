"""The sizes of a model: all that its transforms, its prior and the format must agree on."""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from histocodec.errors import FormatError
from histocodec.strict_json import parse_strict_json

if TYPE_CHECKING:
    from torch import Tensor

QUALITIES = 101  # quality indices 0 … 100; the command line's --quality is the index itself
GROUPS = 4  # channel groups, positions and steps of the quadtree

CHUNK_PIXELS = 512  # side of a chunk, whatever the model
MAX_BLOCKS = 16  # residual blocks of a kind: thrice what any model has, so that no file makes a giant network
BLOCKS = ("analysis8", "analysis16", "synthesis16", "synthesis8")
MOST_RATIO = 10_000  # the highest that a model may aim at
MOST_LATENTS = 1020  # latent channels: a chunk's header has one byte for their quads
# Neither a path nor a file name: an id is looked up among the installed models and must not lead anywhere else.
MODEL_ID = r"(?!.*\.safetensors$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LAMBDA_RANGE = (1e-12, 1e6)  # of λ: far beyond what any model is trained for, and no quotient of two overflows
PATCHES = (32, 64, 128)  # side of a `vae`'s patch in pixels, which is its stride
BLOCK = 16  # side in pixels of what becomes one position of a `vae`'s bottleneck

Quality = TypeVar("Quality", float, "Tensor")
Blocks = tuple[bool, ...]  # residual blocks in order; True where one is spatial (has a 3×3 convolution)


@dataclass(frozen=True)
class HyperConfig:
    """Sizes of a `hyper` model.

    Channel counts are multiples of 4. `analysis8`, `analysis16`, `synthesis16` and `synthesis8` list the residual
    blocks at 1/8 and 1/16 of the pixels' resolution; their spatial ones make the halo, one latent each at 1/16 and half
    a latent each at 1/8. `hidden16` is the number of activations in each block of `synthesis16`, by default that of
    latent channels. Gains and some biases are learnt at `anchors` qualities and interpolated between them. λ goes from
    `lambda_min` at quality 0 to `lambda_max` at quality 100, for an MSE in grey values². Raises FormatError where a
    size is not allowed.
    """

    family: ClassVar[str] = "hyper"
    stride: ClassVar[int] = 16  # pixels per latent, in both directions
    ratio: ClassVar[int | None] = None  # that `encode` aims at by default
    chunk: ClassVar[int] = CHUNK_PIXELS // 16  # side of a chunk in latents
    latent_channels: int = 256
    hyper_channels: int = 32
    hyper_width: int = 96
    context_width: int = 128
    width8: int = 192
    analysis8: Blocks = (True, True, True, True)
    analysis16: Blocks = (True, False, True, False, True, False)
    synthesis16: Blocks = (True, False, True, False)
    synthesis8: Blocks = (True, True)
    integer_synthesis: bool = False  # the first files have neither this key nor the next
    hidden16: int | None = None
    anchors: int = 9
    lambda_min: float = 5e-5
    lambda_max: float = 0.08

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
        for name in ("lambda_min", "lambda_max"):
            value, (low, high) = getattr(self, name), LAMBDA_RANGE
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                found = repr(value)[:80]
                raise FormatError(f"model config: {name} is {found}; a number from {low:g} to {high:g} is allowed")
        if self.lambda_min > self.lambda_max:
            raise FormatError(f"model config: lambda_min is {self.lambda_min}, above lambda_max ({self.lambda_max})")
        if not (type(self.anchors) is int and 2 <= self.anchors <= QUALITIES):
            raise FormatError(f"model config: anchors is {self.anchors!r}; 2 to {QUALITIES} are allowed")

    @property
    def analysis_halo(self) -> int:
        """How far `g_a` looks beyond an output, in latents."""
        return sum(self.analysis16) + -(-sum(self.analysis8) // 2)

    @property
    def synthesis_halo(self) -> int:
        """How far `g_s` looks beyond the pixels of a latent, in latents."""
        return sum(self.synthesis16) + -(-sum(self.synthesis8) // 2)

    def rate_weight(self, quality: Quality) -> Quality:
        """λ of the loss λ·MSE + bpp, MSE in grey values², at a quality in 0 … 100. Of a tensor, element by element."""
        weight: Quality = self.lambda_min * (self.lambda_max / self.lambda_min) ** (quality / (QUALITIES - 1))
        return weight

    def fainter_by(self, quality: float, lower: float) -> float:
        """The factor by which a slide must be fainter for steps at the quality `lower` to be worth what they are at
        `quality` (below 1 where `lower` is higher): the square of a step goes with 1/λ."""
        return math.sqrt(self.rate_weight(lower) / self.rate_weight(quality))

    def to_json(self) -> str:
        """The config as the JSON text that a model file holds."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "HyperConfig":
        """The config that `to_json` wrote; the first files lack `integer_synthesis` and `hidden16`. Raises
        FormatError where `text` is not the JSON of a valid config."""
        return cls(**_members(text, cls, optional=("integer_synthesis", "hidden16")))


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of a `vae` model: a ResNet-18 and its mirror image on independent patches of `stride` × `stride` pixels,
    each of which becomes `latent_channels` numbers.

    `widths` are the channels of the four stages, which are 64, 128, 256 and 512 in He et al. 2016, and `bottleneck` the
    channels between the last stage and the dense layer. With `shortcut` a linear path leads past the stages, from each
    16 × 16 block of pixels to the bottleneck and back. Raises FormatError where a size is not allowed.
    """

    family: ClassVar[str] = "vae"
    analysis_halo: ClassVar[int] = 0  # patches know nothing of each other
    synthesis_halo: ClassVar[int] = 0
    latent_channels: int = 128
    stride: int = 64
    ratio: int | None = 512  # that `encode` aims at by default
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
        """The side of a chunk in latents."""
        return CHUNK_PIXELS // self.stride

    @property
    def features(self) -> int:
        """How many values a patch has between the last stage and the dense layer."""
        return self.bottleneck * (self.stride // BLOCK) ** 2

    def to_json(self) -> str:
        """The config as the JSON text that a model file holds."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "VaeConfig":
        """The config that `to_json` wrote; the first files lack `shortcut`. Raises FormatError where `text` is not the
        JSON of a valid config."""
        return cls(**_members(text, cls, optional=("shortcut",)))


ModelConfig = HyperConfig | VaeConfig


def _members(text: str, config: type[ModelConfig], *, optional: tuple[str, ...]) -> dict[str, Any]:
    """The members of a config in JSON, lists as tuples. They are those of `config` without any other, and all of them
    but the `optional` ones, whose absence has a meaning."""
    try:
        members = parse_strict_json(text.encode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"model config is not understood: {exc}") from exc
    if not isinstance(members, dict):
        raise FormatError(f"model config is not understood: it is no object, but {str(members)[:80]}")
    names = [field.name for field in fields(config)]
    missing = [name for name in names if name not in members and name not in optional]
    if missing:
        raise FormatError(f"model config: {missing[0]} is missing")
    unknown = sorted(members.keys() - set(names))
    if unknown:
        raise FormatError(f"model config: {unknown[0][:80]!r} is unknown; allowed are {', '.join(names)}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in members.items()}


def _check_channels(name: str, value: object, most: int = 1024) -> None:
    if not (isinstance(value, int) and 4 <= value <= most and value % GROUPS == 0):
        raise FormatError(f"model config: {name} is {value!r}; a multiple of 4 from 4 to {most} is allowed")
