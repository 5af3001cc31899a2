"""Recipes: what a run trains, from which start, in which stages. README.md beside this file says what each key means.

A table of a recipe's file is a dataclass here, and a key is one of its fields; `histocodec.train.recipe_file` reads
them. A value that is out of range, or a combination that makes no sense, is a UsageError that names the key.
"""

import math
from dataclasses import asdict, dataclass, replace

from histocodec.errors import FormatError, UsageError
from histocodec.models.config import MOST_RATIO, HyperConfig, VaeConfig
from histocodec.train.schedule import Schedule

BITS_PER_DIMENSION = 1.5  # of a vae's patch at the nominal ratio: there 0.1 · divergence weighs as much as the error


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise UsageError(f"{name} is {value}; at least {least} is needed")


def _above_zero(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name} is {value}; a number above 0 is needed")


def without_prefix(exc: Exception) -> str:
    """The message of a config's error without the words that the table's name stands for."""
    return str(exc).removeprefix("model config: ")


@dataclass(frozen=True)
class Model:
    """`[model]`: the family of networks, and the id of the model file that is made."""

    family: str
    id: str

    def __post_init__(self) -> None:
        if not self.id or "/" in self.id or "\\" in self.id or self.id.startswith("."):
            raise UsageError(f"id is {self.id!r}; letters, digits, '-' and '.' are allowed, and no '.' in front")


@dataclass(frozen=True)
class HyperStart:
    """`[start]` of a hyper model: a finished model, by its id or file, or without one the Karhunen–Loève transform of
    at least `klt_blocks` 16×16 blocks."""

    model: str | None = None
    klt_blocks: int = 400_000

    def __post_init__(self) -> None:
        _at_least(1, klt_blocks=self.klt_blocks)


@dataclass(frozen=True)
class HyperPatches:
    """`[patches]` of a hyper model: how many a step sees, and their side in pixels, a multiple of 64."""

    batch: int
    size: int = 256

    def __post_init__(self) -> None:
        _at_least(1, batch=self.batch)
        if self.size < 64 or self.size % 64:
            raise UsageError(f"size is {self.size}; a multiple of 64 is needed")


@dataclass(frozen=True)
class MainStage:
    """`[train]` of a hyper model: everything at once, by the rate–distortion loss.

    `rate` is the highest learning rate; `schedule` ("wsd" or "cosine"), `warmup`, `decay` and `enlarged` are those of
    `Schedule`, in steps. `prior_rate` is the prior's share of the rate. With `integers` the synthesis is one of whole
    numbers from the first step. `edges` is the weight of the error across the edges of blocks in smooth places.
    Checkpoints are written every `checkpoint_every` steps; `compile` uses torch.compile. With `capture` a step is one
    CUDA graph, and patches are drawn on the GPU.
    """

    steps: int
    rate: float
    schedule: str = "wsd"
    warmup: int = 200
    decay: int = 0
    enlarged: int = 0
    prior_rate: float = 1.0
    integers: bool = False
    edges: float = 0.0
    checkpoint_every: int = 500
    compile: bool = False
    capture: bool = False

    def __post_init__(self) -> None:
        _above_zero(rate=self.rate, prior_rate=self.prior_rate)
        _at_least(1, checkpoint_every=self.checkpoint_every)
        if not 0 <= self.edges < math.inf:
            raise UsageError(f"edges is {self.edges}; a number from 0 is needed")
        assert self.rates

    @property
    def rates(self) -> Schedule:
        """The schedule of the learning rate."""
        return Schedule(self.steps, warmup=self.warmup, decay=self.decay, kind=self.schedule, enlarged=self.enlarged)


@dataclass(frozen=True)
class PruneStage:
    """`[prune]`: how many activations stay in each residual block of the synthesis at 1/16. Fewer are faster."""

    hidden16: int


@dataclass(frozen=True)
class SynthesisStage:
    """`[synthesis]`: training of the integer synthesis alone. `rate` is in steps of a weight as it is stored. With
    `stored_crops`, so many crops of each image are encoded, and the synthesis learns from their latents, too."""

    steps: int = 0
    rate: float = 0.02
    stored_crops: int = 0

    def __post_init__(self) -> None:
        _at_least(0, steps=self.steps, stored_crops=self.stored_crops)
        _above_zero(rate=self.rate)


@dataclass(frozen=True)
class PriorStage:
    """`[prior]`: training of the prior alone; it changes no pixel, only the rate."""

    steps: int
    rate: float = 8e-4

    def __post_init__(self) -> None:
        _at_least(1, steps=self.steps)
        _above_zero(rate=self.rate)


@dataclass(frozen=True)
class Tables:
    """`[tables]`: on how many batches the frequency tables are fitted."""

    batches: int = 200

    def __post_init__(self) -> None:
        _at_least(1, batches=self.batches)


@dataclass(frozen=True)
class HyperRecipe:
    """A recipe for a `hyper` model. What precedes `model` is for people: a line on what it makes, the data it needs,
    its cost, the result to expect, and the command. `name` is that of the file.

    Without `train` a finished model keeps all but its synthesis. `shape` is by default that of the flagship, or of the
    model it starts from, to which it may only add residual blocks.
    """

    model: Model
    patches: HyperPatches
    start: HyperStart = HyperStart()
    shape: HyperConfig | None = None
    train: MainStage | None = None
    prune: PruneStage | None = None
    synthesis: SynthesisStage = SynthesisStage()
    prior: PriorStage | None = None
    tables: Tables = Tables()
    summary: str = ""
    data: str = ""
    cost: str = ""
    expected: str = ""
    command: str = ""
    name: str = "custom"

    def __post_init__(self) -> None:
        if self.model.family != HyperConfig.family:
            raise UsageError(f"[model] family is {self.model.family!r}; {HyperConfig.family!r} is needed")
        if self.start.model is not None:
            if self.shape is not None and self.train is None:
                raise UsageError("[shape] is not allowed without [train]: new blocks would learn nothing")
            if self.start.klt_blocks != HyperStart.klt_blocks:
                raise UsageError("[start] klt_blocks is not allowed with [start] model: there is no KLT then")
        elif self.train is None:
            raise UsageError("[train] is missing; only a recipe with [start] model can do without it")
        if self.train is not None and self.train.integers:
            if self.start.model is None:
                raise UsageError("[train] integers needs [start] model: the KLT has no integers to begin with")
            if self.prune is not None:
                raise UsageError("[prune] is not allowed with [train] integers: only floating point is pruned")
        if self.train is None and self.prior is not None:
            raise UsageError("[prior] is not allowed without [train]: the prior then stays as it is")
        if self.train is None and self.tables != Tables():
            raise UsageError("[tables] is not allowed without [train]: the tables then stay, or fit the stored crops")
        if self.synthesis.stored_crops and (self.train is not None or self.prune is not None):
            raise UsageError("[synthesis] stored_crops is not allowed with [train] or [prune]: crops are stored by the"
                             " model that the recipe starts from")  # fmt: skip


@dataclass(frozen=True)
class VaeStart:
    """`[start]` of a vae: random, or with `klt` a Karhunen–Loève transform, which stays as a path beside the network;
    the divergence is then weighed so that the bits of the ratio are spent."""

    klt: bool = False


@dataclass(frozen=True)
class VaeShape:
    """`[shape]` of a vae: the sizes of `VaeConfig`. The ratio is by default the one at which each of the latents may
    spend BITS_PER_DIMENSION."""

    latent_channels: int = VaeConfig.latent_channels
    stride: int = VaeConfig.stride
    ratio: int | None = None
    widths: tuple[int, int, int, int] = VaeConfig.widths
    bottleneck: int = VaeConfig.bottleneck


@dataclass(frozen=True)
class VaePatches:
    """`[patches]` of a vae: how many a step sees. Their side is the shape's stride."""

    batch: int = 128

    def __post_init__(self) -> None:
        _at_least(1, batch=self.batch)


@dataclass(frozen=True)
class VaeStage:
    """`[train]` of a vae: at most `steps` steps. It stops earlier, after `patience` epochs without a lower validation
    loss. `rate`, `warmup` and `decay` are as in `MainStage`."""

    steps: int
    rate: float = 1e-4
    warmup: int = 0
    decay: int = 0
    patience: int = 10

    def __post_init__(self) -> None:
        _above_zero(rate=self.rate)
        _at_least(1, patience=self.patience)
        assert self.rates

    @property
    def rates(self) -> Schedule:
        """The schedule of the learning rate."""
        return Schedule(self.steps, warmup=self.warmup, decay=self.decay)


@dataclass(frozen=True)
class VaeRecipe:
    """A recipe for a `vae` model (Nasr et al. 2023). As in `HyperRecipe`, the strings are for people."""

    model: Model
    train: VaeStage
    shape: VaeShape = VaeShape()
    patches: VaePatches = VaePatches()
    start: VaeStart = VaeStart()
    summary: str = ""
    data: str = ""
    cost: str = ""
    expected: str = ""
    command: str = ""
    name: str = "custom"

    def __post_init__(self) -> None:
        if self.model.family != VaeConfig.family:
            raise UsageError(f"[model] family is {self.model.family!r}; {VaeConfig.family!r} is needed")
        try:
            config = self.config
        except FormatError as exc:
            raise UsageError(f"[shape] {without_prefix(exc)}") from exc
        if self.start.klt and config.latent_channels > config.features:
            raise UsageError(
                f"[shape] latent_channels is {config.latent_channels}; with [start] klt, at most {config.features} are"
                f" allowed at stride {config.stride}"
            )

    @property
    def config(self) -> VaeConfig:
        """The config of the model that is made."""
        config = VaeConfig(**asdict(self.shape), shortcut=self.start.klt)
        if config.ratio is not None:
            return config
        nominal = 24 * config.stride**2 / (BITS_PER_DIMENSION * config.latent_channels)  # at least 16
        return replace(config, ratio=round(min(nominal, MOST_RATIO)))


Recipe = HyperRecipe | VaeRecipe
