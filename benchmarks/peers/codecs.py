"""The codecs that we are measured against, each as its library is best used for the fewest bytes at a PSNR.

JPEG 2000  9/7 wavelet, colour transform, 6 resolutions, at the rate where it reaches a given PSNR. Whole
           images go through Pillow, whose codestream has no precincts and is 0.1 to 0.4 % smaller; tiles
           through imagecodecs, which lets other threads run meanwhile (Pillow does not). It is the same
           library.
JPEG XL    effort 7, in its own colour space (XYB), which is never subsampled.
AVIF       4:4:4, speed 6, and libaom tuned for SSIM. Tuned for what libavif takes by itself, as imagecodecs
           has it, it needs 4 to 13 % more bytes for the same PSNR on sections and is no better in SSIM; tuned
           for PSNR it gains nothing more. Pillow is the one that can say so.
HTJ2K      as JPEG 2000, by the step of its quantiser, for OpenJPH has no rate control. OpenJPEG decodes it:
           what overshoots white comes out of imagecodecs' htj2k_decode as black, which costs up to 30 dB
           through no fault of the format.
WebP       method 6, lossy, and so always 4:2:0.
JPEG       Huffman tables made for the image; without and with subsampled chroma.
"""

import io
from functools import partial
from typing import cast

import imagecodecs
import numpy as np
from PIL import AvifImagePlugin, Image, features

from histocodec.benchmarks.peers.contender import Coded, Contender, coded, coded_at_bytes, coded_at_psnr, ladder
from histocodec.benchmarks.peers.tiles import TILE, tiled
from histocodec.slide import Pixels

__all__ = [
    "JPEG2000",
    "JPEG2000_TILES",
    "PEERS",
    "TILE",
    "Coded",
    "Contender",
    "coded",
    "coded_at_bytes",
    "coded_at_psnr",
    "ladder",
    "tiled",
]

RESOLUTIONS = 6
MISSING = "not in this build"


def _openjpeg_whole(pixels: Pixels, wanted_psnr: float, threads: int) -> bytes:
    """On one thread, whatever `threads` is: Pillow has no such option."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file,
        "JPEG2000",
        no_jp2=True,  # the bare codestream
        irreversible=True,
        mct=1,
        num_resolutions=min(RESOLUTIONS, min(pixels.shape[:2]).bit_length()),
        quality_mode="dB",
        quality_layers=[wanted_psnr],
    )
    return file.getvalue()


def _openjpeg_tile(pixels: Pixels, wanted_psnr: float, threads: int) -> bytes:
    data = imagecodecs.jpeg2k_encode(
        pixels,
        wanted_psnr,  # type: ignore[arg-type]  # its stub says int; 30.25 and 30.5 differ
        codecformat="j2k",
        reversible=False,
        mct=True,
        resolutions=RESOLUTIONS,  # it takes fewer where the tile is small
        numthreads=threads,
    )
    return cast("bytes", data)


def _openjpeg_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.jpeg2k_decode(data, numthreads=threads))


def _jpegxl_encode(pixels: Pixels, setting: float, threads: int) -> bytes:
    """`setting` is -log2 of the distance, for PSNR is nearly linear in that."""
    data = imagecodecs.jpegxl_encode(
        pixels, effort=7, distance=2**-setting, lossless=False, usecontainer=False, numthreads=threads
    )
    return cast("bytes", data)


def _jpegxl_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.jpegxl_decode(data, numthreads=threads))


def _avif_encode(pixels: Pixels, quality: float, threads: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file,
        "AVIF",
        quality=int(quality),
        subsampling="4:4:4",
        speed=6,
        codec="aom",
        max_threads=threads,
        advanced={"tune": "ssim"},
    )
    return file.getvalue()


def _avif_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.avif_decode(data, numthreads=threads))


def _htj2k_encode(pixels: Pixels, setting: float, threads: int) -> bytes:
    """`setting` is -log2 of the quantiser's step. On one thread: OpenJPH has no others."""
    data = imagecodecs.htj2k_encode(
        pixels,
        2**-setting,
        rgb=True,  # the colour transform
        planar=False,
        resolutions=RESOLUTIONS - 1,  # it counts decompositions
        reversible=False,
    )
    return cast("bytes", data)


def _webp_encode(pixels: Pixels, quality: float, threads: int) -> bytes:
    data = imagecodecs.webp_encode(pixels, int(quality), lossless=False, method=6, numthreads=threads)
    return cast("bytes", data)


def _webp_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.webp_decode(data, hasalpha=False))


def _jpeg_encode(subsampling: str, pixels: Pixels, quality: float, threads: int) -> bytes:
    data = imagecodecs.jpeg8_encode(pixels, int(quality), subsampling=subsampling, optimize=True)
    return cast("bytes", data)


def _jpeg_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.jpeg8_decode(data))


def _version(codec: str) -> str:
    """What imagecodecs has; a codec may be missing from a build, which is no reason not to use the others."""
    try:
        return str(getattr(imagecodecs, f"{codec}_version")())
    except (AttributeError, ImportError):
        return MISSING


def _avif_version() -> str:
    if not features.check("avif"):
        return MISSING
    return f"libavif {features.version('avif')}, aom {AvifImagePlugin.get_codec_version('aom')}"


_PSNRS = (10.0, 60.0)
JPEG2000 = Contender("JPEG 2000", _version("jpeg2k"), _PSNRS, _openjpeg_whole, _openjpeg_decode)
JPEG2000_TILES = tiled(Contender("JPEG 2000", _version("jpeg2k"), _PSNRS, _openjpeg_tile, _openjpeg_decode))

# libjxl's coarsest distance is 25; of those finer than 0.05 nobody sees the difference.
_DISTANCES = (-float(np.log2(25)), -float(np.log2(0.05)))
_JPEGXL = Contender("JPEG XL", f"{_version('jpegxl')}, effort 7", _DISTANCES, _jpegxl_encode, _jpegxl_decode)
_AVIF = Contender(
    "AVIF 4:4:4", f"{_avif_version()}, speed 6, tune=ssim", (0, 99), _avif_encode, _avif_decode, whole=True
)
_HTJ2K = Contender(
    "HTJ2K", f"{_version('htj2k')}, decoded by {_version('jpeg2k')}", (0.0, 11.0), _htj2k_encode, _openjpeg_decode
)
_WEBP = Contender("WebP 4:2:0", f"{_version('webp')}, method 6", (0, 100), _webp_encode, _webp_decode, whole=True)
_JPEG_444, _JPEG_420 = (
    Contender(f"JPEG {name}", _version("jpeg8"), (1, 100), partial(_jpeg_encode, number), _jpeg_decode, whole=True)
    for name, number in (("4:4:4", "444"), ("4:2:0", "420"))
)

# By the names that the command line takes, the most important first.
PEERS: dict[str, tuple[Contender, ...]] = {
    "jpeg2000": (JPEG2000, JPEG2000_TILES),
    "jpegxl": (_JPEGXL,),
    "avif": (_AVIF,),
    "htj2k": (_HTJ2K,),
    "webp": (_WEBP,),
    "jpeg": (_JPEG_444, _JPEG_420),
}
