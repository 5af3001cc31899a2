"""What an encode is told, and what it tells on the way."""

from dataclasses import dataclass

from histocodec.errors import UsageError
from histocodec.models.config import QUALITIES, HyperConfig
from histocodec.models.weights import DEFAULT_MODEL, ModelWeights

DEFAULT_QUALITY = 50
DEFAULT_EFFORT, MOST_EFFORT = 1, 9


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
    embed_model: bool = False  # stores the model in the container

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
        if self.workers is not None and not 1 <= self.workers <= 1024:
            raise UsageError(f"--workers {self.workers}: 1 to 1024 is allowed")
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
