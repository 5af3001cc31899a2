"""What an encode is told, and what it tells on the way."""

from dataclasses import dataclass

from histocodec.errors import UsageError
from histocodec.models.config import QUALITIES, HyperConfig
from histocodec.models.weights import DEFAULT_MODEL, ModelWeights

DEFAULT_QUALITY = 50
DEFAULT_EFFORT, MOST_EFFORT = 1, 9
CHUNK_SIDES = (256, 512)  # pixels
OVERVIEW_SIDE, MOST_OVERVIEW = 512, 4096  # pixels of the longer side
SETTINGS = (
    "quality", "target_psnr", "target_bpp", "ratio", "min_psnr", "effort", "levels", "background", "on_error", "chunk",
)  # fmt: skip
SOURCE_NAMES = ("auto", "keep", "hash", "drop")


@dataclass(frozen=True)
class EncodeOptions:
    """The options of an encode. Raises UsageError where a value is out of range, or two exclude each other.

    At most one of `quality`, `target_psnr`, `target_bpp` and `ratio` is given. Without any of them, the model's own
    ratio is the target if it has one; otherwise the quality is DEFAULT_QUALITY.
    """

    quality: float | None = None  # 0 to 100; fractions for `hyper` models only
    target_psnr: float | None = None  # 10 to 60 dB over the chunks of level 0 that are not background
    target_bpp: float | None = None  # bits of the whole container per pixel of level 0, at most 24
    ratio: float | None = None  # raw RGB bytes of level 0 over the container's bytes, 1 to 10,000
    min_psnr: float | None = None  # 10 to 100 dB that every chunk of every level must have, whatever it takes
    effort: float | None = None  # of the search, 0 (none) to 9; None: DEFAULT_EFFORT if the model's family can search
    model: str = DEFAULT_MODEL  # an id, or the path of a .safetensors file
    levels: tuple[int, ...] | None = None  # None: all, and derived ones where the slide has no pyramid
    background: str = "skip"  # leaves background chunks out; "code" codes them like others
    on_error: str = "fail"  # where the source cannot be read; "background" fills it, and names the places
    device: str = "auto"  # "cpu", "cuda", "cuda:N", or "auto" for a GPU if there is one
    workers: int | None = None  # threads; None: one for each core
    overwrite: bool = False  # replaces a container, once the new one is complete
    resume: bool = False  # continues an interrupted encode of the same request
    keep_label: bool = False  # the image of the label, which may name the patient
    keep_macro: bool = False  # the macro image, which may show the label
    keep_private: bool = False  # properties that may name people or dates
    embed_model: bool = False  # stores the model's decoder in the container
    model_beside: bool = False  # stores it beside the container, once for all slides of a folder
    chunk: int = 512  # pixels a side of a chunk, 256 or 512: smaller ones cost bytes, and halve what a patch decodes
    overview: int | None = OVERVIEW_SIDE  # the least pixels of the longer side of the overview; None: no overview
    source_name: str = "auto"  # of the source's file: "keep", "hash" or "drop" it; "auto" drops what may name a case
    source_sha256: bool = False  # reads the source's files once more for their SHA-256

    def __post_init__(self) -> None:
        rates = {
            "--quality": self.quality,
            "--target-psnr": self.target_psnr,
            "--target-bpp": self.target_bpp,
            "--ratio": self.ratio,
        }
        given = [name for name, value in rates.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other; give one")
        if self.quality is not None and not 0 <= self.quality <= QUALITIES - 1:
            raise UsageError(f"--quality {self.quality:g}: 0 to {QUALITIES - 1} is allowed")
        if self.target_psnr is not None and not 10 <= self.target_psnr <= 60:
            raise UsageError(f"--target-psnr {self.target_psnr:g}: 10 to 60 dB is allowed")
        if self.min_psnr is not None and not 10 <= self.min_psnr <= 100:
            raise UsageError(f"--min-psnr {self.min_psnr:g}: 10 to 100 dB is allowed")
        if self.target_bpp is not None and not 0 < self.target_bpp <= 24:
            raise UsageError(f"--target-bpp {self.target_bpp:g}: above 0 and at most 24 is allowed")
        if self.ratio is not None and not 1 <= self.ratio <= 10_000:
            raise UsageError(f"--ratio {self.ratio:g}: 1 to 10000 is allowed")
        if self.effort is not None and not 0 <= self.effort <= MOST_EFFORT:
            raise UsageError(f"--effort {self.effort:g}: 0 to {MOST_EFFORT} is allowed")
        if self.background not in ("skip", "code"):
            raise UsageError(f"--background {self.background}: skip or code is allowed")
        if self.on_error not in ("fail", "background"):
            raise UsageError(f"--on-error {self.on_error}: fail or background is allowed")
        if self.chunk not in CHUNK_SIDES:
            raise UsageError(f"--chunk {self.chunk}: {' or '.join(map(str, CHUNK_SIDES))} pixels is allowed")
        if self.overview is not None and not 1 <= self.overview <= MOST_OVERVIEW:
            raise UsageError(f"--overview {self.overview}: 1 to {MOST_OVERVIEW} pixels or none is allowed")
        if self.source_name not in SOURCE_NAMES:
            raise UsageError(f"--source-name {self.source_name}: {', '.join(SOURCE_NAMES)} is allowed")
        if self.workers is not None and not 1 <= self.workers <= 1024:
            raise UsageError(f"--workers {self.workers}: 1 to 1024 is allowed")
        if self.embed_model and self.model_beside:
            raise UsageError("--embed-model and --model-beside exclude each other: one decoder is enough; give one")
        if self.overwrite and self.resume:
            raise UsageError("--overwrite and --resume exclude each other: one starts anew, the other continues")

    def effort_with(self, model: ModelWeights) -> float:
        """The effort to use with a model. Raises UsageError where effort is given for a family that cannot search."""
        searches = isinstance(model.config, HyperConfig)
        if self.effort and not searches:
            raise UsageError(
                f"--effort {self.effort:g}: model {model.id} is of the family {model.config.family}; only "
                f"{HyperConfig.family} models can search, so leave --effort out"
            )
        default = DEFAULT_EFFORT if searches else 0
        return default if self.effort is None else self.effort

    def settings(self) -> dict[str, object]:
        """What the container says about how it was encoded: every option that its bytes depend on and that was given
        another value than the default."""
        default = EncodeOptions()
        told = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) != getattr(default, name)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}

    def chunk_latents(self, model: ModelWeights) -> int:
        """The side of a chunk in latents of a model. Raises UsageError for a chunk that the model cannot have."""
        side = self.chunk // model.config.stride
        if side < 4:
            raise UsageError(
                f"--chunk {self.chunk}: model {model.id} has {model.config.stride} pixels a latent and needs chunks of "
                f"{4 * model.config.stride} or more"
            )
        return side

    @property
    def has_target(self) -> bool:
        """Whether the options give a target that the quality has to meet."""
        return self.wanted_bpp is not None or self.target_psnr is not None

    @property
    def wanted_bpp(self) -> float | None:
        """The target in bits per pixel of level 0, from --target-bpp or --ratio; None without either."""
        return self.target_bpp if self.ratio is None else 24 / self.ratio


@dataclass(frozen=True)
class EncodeProgress:
    """How far an encode has come. `done` and `total` are pixels over all stages; `total` may grow. Speed and time left
    are those of the current stage."""

    stage: str  # "prepare", "encode", "measure" or "raise"
    done: int
    total: int
    megapixels_per_second: float
    seconds_left: float | None
