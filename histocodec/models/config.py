"""The shape of a `hyper` model: every size that the transforms, the prior and the format must agree on."""

import json
from dataclasses import asdict, dataclass

from histocodec.errors import FormatError

STRIDE = 16  # pixels per latent, in both directions
QUALITIES = 101  # quality indices 0 … 100; the command line's --quality is the index itself
GROUPS = 4  # channel groups, positions and steps of the quadtree context

MAX_BLOCKS = 16  # of each kind: thrice what any model has, so that a hostile config builds no giant network
BLOCKS = ("analysis8", "analysis16", "synthesis16", "synthesis8")

Blocks = tuple[bool, ...]  # one residual block each; True where it looks at its neighbours (3×3)


@dataclass(frozen=True)
class HyperConfig:
    """Sizes of one model. Channel counts are multiples of 4; `*_blocks` list residual blocks in order.

    The receptive field follows from the 3×3 blocks: one latent each at 1/16, half a latent each at 1/8.
    """

    latent_channels: int = 256
    hyper_channels: int = 32
    hyper_width: int = 96
    context_width: int = 128
    width8: int = 192
    analysis8: Blocks = (True, True, True, True)
    analysis16: Blocks = (True, False, True, False, True, False)
    synthesis16: Blocks = (True, False, True, False)
    synthesis8: Blocks = (True, True)
    anchors: int = 9  # qualities at which gains and biases are learnt; the others are interpolated
    lambda_min: float = 5e-5  # rate–distortion weight at quality 0, MSE on the 0–255 scale
    lambda_max: float = 0.08  # … and at quality 100

    def __post_init__(self) -> None:
        for name in ("latent_channels", "hyper_channels", "hyper_width", "context_width"):
            value = getattr(self, name)
            if not (isinstance(value, int) and 4 <= value <= 1024 and value % GROUPS == 0):
                raise FormatError(f"model config: {name} is {value!r}; a multiple of 4 from 4 to 1024 is allowed")
        if type(self.width8) is not int or self.width8 != 192:
            raise FormatError(f"model config: width8 is {self.width8!r}; only 192 (8×8×3) is allowed")
        for name in BLOCKS:
            value = getattr(self, name)
            if not (isinstance(value, tuple) and len(value) <= MAX_BLOCKS and {*map(type, value)} <= {bool}):
                found = str(value)[:80]
                raise FormatError(f"model config: {name} is {found}; at most {MAX_BLOCKS} booleans are allowed")
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

    def rate_weight(self, quality: float) -> float:
        """λ of the loss λ·MSE + bpp at a quality in 0 … 100."""
        return float(self.lambda_min * (self.lambda_max / self.lambda_min) ** (quality / (QUALITIES - 1)))

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
