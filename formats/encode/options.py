"""What `encode` is asked for, what it says on the way, and what it reports."""

from dataclasses import dataclass

from histocodec.errors import UsageError
from histocodec.models.config import QUALITIES, HyperConfig
from histocodec.models.weights import DEFAULT_MODEL, ModelWeights

DEFAULT_QUALITY = 50
DEFAULT_EFFORT, MOST_EFFORT = 1, 9


@dataclass(frozen=True)
class EncodeOptions:
    """One of the four rate options, or none for the model's own ratio, where it has one, else for DEFAULT_QUALITY;
    checked here, once."""

    quality: float | None = None  # of a `hyper` model in any parts
    target_psnr: float | None = None  # dB over the coded chunks of level 0
    target_bpp: float | None = None  # bits of the whole container per pixel of level 0
    ratio: float | None = None  # raw RGB bytes of level 0 over the container's bytes
    min_psnr: float | None = None  # dB that every chunk of every level must have, whatever it takes
    effort: float | None = None  # of the search for cheaper latents, 0: none; None: DEFAULT_EFFORT where it can be
    model: str = DEFAULT_MODEL  # an id, or the path of a .safetensors file
    levels: tuple[int, ...] | None = None  # None: all
    background: str = "skip"  # or "code"
    device: str = "auto"
    workers: int | None = None
    overwrite: bool = False
    resume: bool = False
    keep_label: bool = False
    keep_macro: bool = False
    keep_private: bool = False  # properties that may name people or dates
    embed_model: bool = False

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
        if self.workers is not None and not 1 <= self.workers <= 1024:
            raise UsageError(f"--workers {self.workers}: 1 to 1024 is allowed")
        if self.overwrite and self.resume:
            raise UsageError("--overwrite and --resume exclude each other: one starts anew, one goes on")

    def effort_with(self, model: ModelWeights) -> float:
        """Raises UsageError where more is asked for than the model's family knows."""
        searches = isinstance(model.config, HyperConfig)
        if self.effort and not searches:
            raise UsageError(
                f"--effort {self.effort:g}: model {model.id} is of the family {model.config.family}; only "
                f"{HyperConfig.family} models have cheaper latents to look for"
            )
        default = DEFAULT_EFFORT if searches else 0
        return default if self.effort is None else self.effort

    @property
    def has_target(self) -> bool:
        """Whether the quality is the one that meets a target, whatever it is."""
        return self.wanted_bpp is not None or self.target_psnr is not None

    @property
    def wanted_bpp(self) -> float | None:
        """Bits per level-0 pixel that --target-bpp or --ratio asks for."""
        return self.target_bpp if self.ratio is None else 24 / self.ratio


@dataclass(frozen=True)
class EncodeProgress:
    """`done` and `total` are pixels, over all stages; speed and time left are those of the stage."""

    stage: str  # "prepare", "encode", "measure" or "raise"
    done: int
    total: int
    megapixels_per_second: float
    seconds_left: float | None
