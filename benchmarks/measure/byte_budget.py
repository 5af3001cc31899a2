"""Code an image into a byte budget: the finest quality that needs no more bytes than there are."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from histocodec.benchmarks.measure.our_codec import OurCodec
from histocodec.models.config import QUALITIES
from histocodec.slide import Pixels

RATIOS = (32, 64, 128, 256, 512)  # of raw RGB to bytes, those of Nasr et al. 2023 (arXiv 2303.13332)
PARTS = 8  # of a quality step; one part changes the bytes by about half a per cent


def raw_bytes_over(ratio: int, pixels: int) -> int:
    """Bytes of so many raw RGB pixels over the ratio; 1:512 is 0.047 bits per pixel."""
    return 3 * pixels // ratio


def finest_within(
    budget: int, bytes_by_quality: dict[float, int], bytes_at: Callable[[float], int], *, parts: int = 1
) -> float:
    """Find the highest quality of at most `budget` bytes by bisection, in steps of 1 / `parts`.

    `bytes_by_quality` are sizes that are known already; sizes that had to be tried are added to it.
    Returns 0 where even quality 0 needs more bytes.
    """
    low, high = -1, parts * (QUALITIES - 1) + 1
    for quality, size in bytes_by_quality.items():
        if size <= budget:
            low = max(low, round(parts * quality))
        else:
            high = min(high, round(parts * quality))
    while high - low > 1:
        middle = (low + high) // 2
        size = bytes_by_quality[middle / parts] = bytes_at(middle / parts)
        low, high = (middle, high) if size <= budget else (low, middle)
    return max(low, 0) / parts


def ours_within(
    pixels: Pixels, budget: int, *, model: str, device: str, threads: int, effort: float | None
) -> tuple[int, Pixels]:
    """Code pixels (H, W, 3) uint8 at the highest whole quality of at most `budget` bytes, at quality 0 where even
    that needs more.

    Returns the bytes, as they count within a slide, and the decoded pixels.
    """
    with TemporaryDirectory(prefix="histocodec-bench-") as folder:

        def coded(quality: float) -> OurCodec:
            return OurCodec(pixels, quality, model, device, threads, Path(folder) / str(quality), effort)

        def size(quality: float) -> int:
            ours = coded(quality)
            ours.folder.mkdir()
            return ours.sizes(ours.prepare()).in_slide_bytes

        bytes_by_quality: dict[float, int] = {}
        quality = finest_within(budget, bytes_by_quality, size)
        needed = bytes_by_quality[quality] if quality in bytes_by_quality else size(quality)
        return needed, coded(quality).read()
