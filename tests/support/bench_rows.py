"""Invented benchmark rows, so that tests of tables and reports run no codec."""

from collections.abc import Sequence

from histocodec.benchmarks.measure.images import Subject
from histocodec.benchmarks.measure.metrics import Fidelity
from histocodec.benchmarks.measure.nuclei import NucleiAgreement
from histocodec.benchmarks.measure.result_rows import CURVE, OURS, CodecVersion, Point, Row, Sizes, Speed

SIDE = 1000  # pixels of every image: a bit per pixel is 125,000 bytes
PEER = "JPEG 2000"
BPPS = (0.04, 0.1, 0.25, 0.5, 1.0, 2.0)
FAST = Speed("a machine", 4.0, 8.0, 6.0, 12.0, 1000, 500)


def subject(image: str, variant: str = "native") -> Subject:
    return Subject(image, variant, image.split("-")[0], SIDE, SIDE, 0.5, f"sha of {image}, {variant}")


def row(
    about: Subject,
    codec: str,
    bpp: float,
    psnr: float,
    *,
    kind: str = CURVE,
    setting: float = 0.0,
    speed: Speed | None = None,
) -> Row:
    """MS-SSIM is half the PSNR; ours costs 100 bytes beside the chunks, and 1000 more in its container."""
    ours = codec == OURS
    size = round(bpp * SIDE * SIDE / 8)
    sizes = Sizes(size + 100, size, size + 1000) if ours else Sizes(size, size, size)
    coded_by = CodecVersion("histocodec" if ours else "jpeg2000", codec, "1", "sha" if ours else None, "cpu", "tool")
    fidelity = Fidelity(psnr, 0.9, psnr / 2, 1.5, 0.02, 0.03)
    point = Point(kind, setting)
    return Row(about, coded_by, point, sizes, bpp, fidelity, NucleiAgreement(10, 9, 0.1, 0.8, 0.7), speed)


def curve(about: Subject, codec: str, *, factor: float = 1.0, bpps: Sequence[float] = BPPS) -> list[Row]:
    """A curve whose quality rises from point to point; `factor` scales the bytes."""
    return [
        row(about, codec, bpp * factor, 25 + 2.0 * number, setting=10.0 * number) for number, bpp in enumerate(bpps)
    ]
