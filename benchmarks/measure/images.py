"""Choose what is measured: images whole, large slides as squares of tissue, each in one or more variants."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from histocodec.errors import UsageError
from histocodec.formats.decode.open import open_slide
from histocodec.geometry import Region
from histocodec.slide import Pixels, Slide
from histocodec.tissue import mask_part, tissue_mask

VARIANTS = ("native", "enlarged", "blurred")
ENLARGED = 2  # times, bicubic
SIGMA = 2.0  # pixels, of the Gaussian that blurs
LARGEST_WHOLE = 2048  # pixels on a side: up to here an image is measured whole
SMALLEST = 32  # pixels on a side: below, neither a codec nor a metric says anything
TISSUE_SHARE = 0.5  # of a square has to be tissue, where a slide has such squares
DEFAULT_MPP = 0.5  # microns per pixel where a source does not say, as 20x scans have it


@dataclass(frozen=True)
class Subject:
    """What a row is about."""

    image: str  # the file's name, with the region where there is one
    variant: str
    group: str  # the source: what the name begins with, up to the first "-"
    width: int
    height: int
    mpp: float  # DEFAULT_MPP where the source does not say; only the search for nuclei uses it
    sha256: str  # of the size and the pixels, as they are measured


@dataclass(frozen=True, eq=False)
class Picture:
    """The pixels of one subject, (H, W, 3) uint8."""

    subject: Subject
    pixels: Pixels

    @property
    def area(self) -> int:
        """How many pixels there are."""
        return self.subject.width * self.subject.height


@dataclass(frozen=True)
class Sample:
    """A picture that has not been read yet; `region` is of level 0."""

    path: Path
    region: Region
    whole: bool
    variant: str

    @property
    def name(self) -> str:
        """The file's name, with the region unless it is the whole image."""
        return self.path.name if self.whole else f"{self.path.name} {self.region}"

    @property
    def group(self) -> str:
        """The source of the image: what the file's name begins with, up to the first "-"."""
        return self.path.stem.split("-")[0]


def choose(paths: Sequence[Path], *, variants: Sequence[str], regions: int, side: int, seed: int) -> tuple[Sample, ...]:
    """Choose what to measure of each source: images up to LARGEST_WHOLE whole; of larger ones `regions` squares of
    tissue, `side` pixels on a side (0 regions: all of the image).

    Opens every source, so that a bad one is reported before hours of work. Raises UsageError for an unknown variant,
    for two sources with the same file name, and for an image that is too small.
    """
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        raise UsageError(f"variant {unknown[0]!r} is unknown; allowed are {', '.join(VARIANTS)}")
    samples: list[Sample] = []
    path_of: dict[str, Path] = {}
    for path in paths:
        if path.name in path_of:
            raise UsageError(f"{path}: has the same name as {path_of[path.name]}; names tell rows apart, so rename one")
        path_of[path.name] = path
        with open_slide(path) as slide:
            whole = slide.levels[0].region
            if min(whole.width, whole.height) < SMALLEST:
                raise UsageError(
                    f"{path}: {whole.width} x {whole.height} pixels; at least {SMALLEST} on each side are needed"
                )
            if regions == 0 or max(whole.width, whole.height) <= LARGEST_WHOLE:
                chosen = [whole]
            else:
                chosen = tissue_squares(slide, count=regions, side=side, seed=seed)
        samples += [Sample(path, region, region == whole, variant) for region in chosen for variant in variants]
    return tuple(samples)


def tissue_squares(slide: Slide, *, count: int, side: int, seed: int) -> list[Region]:
    """Draw at most `count` squares of level 0 at random that do not overlap and are mostly tissue; where there are too
    few, take the fullest. The same seed gives the same squares.

    Their grid begins at a random pixel: on a multiple of 8, a peer would find the blocks of a scanner's own JPEG again.
    """
    level, mask, drawing = slide.levels[0], tissue_mask(slide), random.Random(seed)
    side = min(side, level.width, level.height)
    left, top = (drawing.randrange(size % side + 1) for size in (level.width, level.height))
    squares = [
        Region(x, y, side, side)
        for y in range(top, level.height - side + 1, side)
        for x in range(left, level.width - side + 1, side)
    ]
    shares = {square: float(np.mean(mask_part(mask, level, square))) for square in squares}
    tissue = [square for square in squares if shares[square] >= TISSUE_SHARE]
    if len(tissue) > count:
        chosen = drawing.sample(tissue, count)
    else:
        chosen = sorted(squares, key=lambda square: -shares[square])[:count]
    return sorted(chosen, key=lambda square: (square.y, square.x))


def read(sample: Sample) -> Picture:
    """Read a sample's pixels, in its variant."""
    with open_slide(sample.path) as slide:
        pixels = varied(slide.read(sample.region, 0), sample.variant)
        mpp = DEFAULT_MPP if slide.mpp is None else sum(slide.mpp) / 2
    height, width = pixels.shape[:2]
    subject = Subject(
        image=sample.name,
        variant=sample.variant,
        group=sample.group,
        width=width,
        height=height,
        mpp=mpp / ENLARGED if sample.variant == "enlarged" else mpp,
        sha256=hashlib.sha256(f"{height} {width} ".encode() + pixels.tobytes()).hexdigest(),
    )
    return Picture(subject, pixels)


def varied(pixels: Pixels, variant: str) -> Pixels:
    """The pixels as they are, twice as large, or blurred: the last two have tissue without the scanner's own detail."""
    if variant == "enlarged":
        size = (ENLARGED * pixels.shape[1], ENLARGED * pixels.shape[0])
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return blurred(pixels) if variant == "blurred" else pixels


def blurred(pixels: Pixels, sigma: float = SIGMA) -> Pixels:
    """Blur by a Gaussian of `sigma` pixels, mirrored at the edges, rounded half up."""
    radius = int(np.ceil(4 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    values: NDArray[np.float64] = pixels.astype(np.float64)
    for axis in (0, 1):
        padding = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
        padded, size = np.pad(values, padding, "symmetric"), values.shape[axis]
        values = sum(
            (weight * padded.take(range(i, i + size), axis) for i, weight in enumerate(weights.tolist())),
            start=np.zeros_like(values),
        )
    return np.floor(values + 0.5).astype(np.uint8)
