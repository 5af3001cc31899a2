"""The codecs that we are measured against, each as its library needs the fewest bytes at a given PSNR.

JPEG 2000  9/7 wavelet, colour transform, 6 resolutions, at the rate where it reaches a given PSNR. Whole images go
           through Pillow, whose codestream has no precincts and is 0.1 to 0.4 % smaller; tiles go through
           imagecodecs, which, unlike Pillow, lets other threads run meanwhile. Both call OpenJPEG.
JPEG XL    effort 7, in its own colour space (XYB), which is never subsampled.
AVIF       4:4:4, speed 6, with libaom tuned for SSIM. Tuned as libavif does by default, which is all that imagecodecs
           offers, it needs 4 to 13 % more bytes for the same PSNR on sections and is no better in SSIM; tuned for
           PSNR it gains nothing more. Only Pillow can choose the tuning.
HTJ2K      as JPEG 2000, but by the step of its quantiser, because OpenJPH has no rate control. OpenJPEG decodes it:
           imagecodecs' htj2k_decode turns what overshoots white into black, which costs up to 30 dB through no
           fault of the format.
WebP       method 6, lossy, and therefore always 4:2:0.
JPEG       Huffman tables made for the image; with full and with subsampled chroma.
"""

import io
from functools import partial
from typing import cast

import imagecodecs
import numpy as np
from PIL import AvifImagePlugin, Image, features

from histocodec.benchmarks.peers.contender import Contender
from histocodec.benchmarks.peers.tiles import tiled
from histocodec.slide import Pixels

RESOLUTIONS = 6
MISSING = "not in this build"  # instead of a version


def _openjpeg_whole(pixels: Pixels, target_psnr: float, threads: int) -> bytes:
    """On one thread whatever `threads` is, because Pillow has no such option."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(
        file,
        "JPEG2000",
        no_jp2=True,  # the bare codestream
        irreversible=True,
        mct=1,
        num_resolutions=min(RESOLUTIONS, min(pixels.shape[:2]).bit_length()),
        quality_mode="dB",
        quality_layers=[target_psnr],
    )
    return file.getvalue()


def _openjpeg_tile(pixels: Pixels, target_psnr: float, threads: int) -> bytes:
    data = imagecodecs.jpeg2k_encode(
        pixels,
        target_psnr,  # type: ignore[arg-type]  # its stub says int; 30.25 and 30.5 differ
        codecformat="j2k",
        reversible=False,
        mct=True,
        resolutions=RESOLUTIONS,  # it uses fewer where the tile is small
        numthreads=threads,
    )
    return cast("bytes", data)


def _openjpeg_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.jpeg2k_decode(data, numthreads=threads))


def _jpegxl_encode(pixels: Pixels, setting: float, threads: int) -> bytes:
    """`setting` is -log2 of the distance; PSNR is nearly linear in it."""
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
    """`setting` is -log2 of the quantiser's step. On one thread whatever `threads` is: OpenJPH has no other."""
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
    """The version that imagecodecs has. A codec may be missing from a build; the others still work."""
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

# libjxl's coarsest distance is 25; nobody sees the difference between distances finer than 0.05.
_DISTANCES = (-float(np.log2(25)), -float(np.log2(0.05)))
_JPEGXL = Contender("JPEG XL", f"{_version('jpegxl')}, effort 7", _DISTANCES, _jpegxl_encode, _jpegxl_decode)
_AVIF = Contender(
    "AVIF 4:4:4", f"{_avif_version()}, speed 6, tune=ssim", (0, 99), _avif_encode, _avif_decode, integer_settings=True
)
_HTJ2K = Contender(
    "HTJ2K", f"{_version('htj2k')}, decoded by {_version('jpeg2k')}", (0.0, 11.0), _htj2k_encode, _openjpeg_decode
)
_WEBP = Contender(
    "WebP 4:2:0", f"{_version('webp')}, method 6", (0, 100), _webp_encode, _webp_decode, integer_settings=True
)
_JPEG_444, _JPEG_420 = (
    Contender(
        f"JPEG {name}", _version("jpeg8"), (1, 100), partial(_jpeg_encode, number), _jpeg_decode, integer_settings=True
    )
    for name, number in (("4:4:4", "444"), ("4:2:0", "420"))
)

# By the names that the command line takes, most important first; the first contender of each codes whole images.
PEERS: dict[str, tuple[Contender, ...]] = {
    "jpeg2000": (JPEG2000, JPEG2000_TILES),
    "jpegxl": (_JPEGXL,),
    "avif": (_AVIF,),
    "htj2k": (_HTJ2K,),
    "webp": (_WEBP,),
    "jpeg": (_JPEG_444, _JPEG_420),
}
