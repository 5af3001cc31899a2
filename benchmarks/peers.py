"""The codecs that we are measured against, each at the settings that serve it best on PSNR at its usual effort.

    codec              colour                      what its setting is
    JPEG 2000          4:4:4, ICT                  target PSNR in dB (OpenJPEG, 9/7 wavelet, 6 resolutions)
    JPEG XL            4:4:4, XYB (perceptual)     -log2 of the distance; libjxl's `lossless` is off
    AVIF               4:4:4, BT.601 YCbCr         libavif's quality, libaom at speed 6; 100 would be lossless
    HTJ2K              4:4:4, ICT                  -log2 of the quantiser's step (OpenJPH, 9/7, 6 resolutions)
    WebP               4:2:0, YCbCr (it has no     libwebp's quality, method 6, `lossless` off
                       other)
    JPEG               4:2:0 or 4:4:4, YCbCr       libjpeg-turbo's quality, optimised Huffman tables

Whole JPEG 2000 images are encoded through Pillow, whose codestream has no precincts and is 0.1 to 0.4 % smaller;
tiles through imagecodecs, which lets other threads run meanwhile (Pillow does not). It is the same library.

HTJ2K is decoded by OpenJPEG. OpenJPH does not clip, and its wrapper here turns a white that overshoots into black
(OpenJPH issues 35 and 234), which would cost it 25 dB through no fault of the format.
"""

import io
import math
from collections.abc import Sequence
from functools import partial
from typing import cast

import imagecodecs
from PIL import Image

from histocodec.benchmarks.contender import Contender, tiled
from histocodec.errors import UsageError
from histocodec.slide import Pixels

RESOLUTIONS = 6
JPEGXL_SETTINGS = (-math.log2(25), -math.log2(0.05))  # libjxl takes no distance above 25
HTJ2K_STEPS = 10.0  # halvings of the step: at 2**-10 it is nearly lossless


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
    return bytes(data)


def _openjpeg_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.jpeg2k_decode(data, numthreads=threads))


def _jpegxl_encode(effort: int, pixels: Pixels, halvings: float, threads: int) -> bytes:
    distance = 2.0**-halvings
    return bytes(
        imagecodecs.jpegxl_encode(pixels, distance=distance, effort=effort, lossless=False, numthreads=threads)
    )


def _jpegxl_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.jpegxl_decode(data, numthreads=threads))


def _avif_encode(pixels: Pixels, quality: float, threads: int) -> bytes:
    level = round(quality)
    return bytes(imagecodecs.avif_encode(pixels, level, speed=6, pixelformat="yuv444", codec="aom", numthreads=threads))


def _avif_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.avif_decode(data, numthreads=threads))


def _htj2k_encode(pixels: Pixels, halvings: float, threads: int) -> bytes:
    resolutions = min(RESOLUTIONS, min(pixels.shape[:2]).bit_length())
    return bytes(imagecodecs.htj2k_encode(pixels, 2.0**-halvings, rgb=True, reversible=False, resolutions=resolutions))


def _webp_encode(pixels: Pixels, quality: float, threads: int) -> bytes:
    return bytes(imagecodecs.webp_encode(pixels, quality, lossless=False, method=6, numthreads=threads))


def _webp_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.webp_decode(data))


def _jpeg_encode(subsampling: str, pixels: Pixels, quality: float, threads: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, round(quality), subsampling=subsampling, optimize=True))


def _jpeg_decode(data: bytes, threads: int) -> Pixels:
    return cast("Pixels", imagecodecs.jpeg8_decode(data))


def _jpeg(name: str, subsampling: str) -> Contender:
    version = f"libjpeg-turbo {str(imagecodecs.jpeg8_version()).removeprefix('libjpeg_turbo ')}"
    return Contender(name, version, (1, 98), partial(_jpeg_encode, subsampling), _jpeg_decode)


def _jpegxl(effort: int) -> Contender:
    encode, version = partial(_jpegxl_encode, effort), str(imagecodecs.jpegxl_version())
    return Contender(f"JPEG XL, effort {effort}", version, JPEGXL_SETTINGS, encode, _jpegxl_decode)


_OPENJPEG = str(imagecodecs.jpeg2k_version())
_PSNRS = (10.0, 60.0)
JPEG2000 = Contender("JPEG 2000", _OPENJPEG, _PSNRS, _openjpeg_whole, _openjpeg_decode)
JPEG2000_TILES = tiled(Contender("JPEG 2000", _OPENJPEG, _PSNRS, _openjpeg_tile, _openjpeg_decode))
JPEGXL, JPEGXL_SLOW = _jpegxl(7), _jpegxl(9)
AVIF = Contender("AVIF", str(imagecodecs.avif_version()), (0, 99), _avif_encode, _avif_decode)
HTJ2K = Contender(
    "HTJ2K", f"{imagecodecs.htj2k_version()}, {_OPENJPEG}", (0, HTJ2K_STEPS), _htj2k_encode, _openjpeg_decode
)
WEBP = Contender("WebP", str(imagecodecs.webp_version()), (0, 100), _webp_encode, _webp_decode)
JPEG_420, JPEG_444 = _jpeg("JPEG 4:2:0", "420"), _jpeg("JPEG 4:4:4", "444")

# What `--against` may name, the main peers first. JPEG 2000's tiles are for images larger than one tile.
PEERS = {
    "jpeg2000": (JPEG2000, JPEG2000_TILES),
    "jpegxl": (JPEGXL,),
    "avif": (AVIF,),
    "htj2k": (HTJ2K,),
    "webp": (WEBP,),
    "jpeg": (JPEG_420, JPEG_444),
    "jpegxl-slow": (JPEGXL_SLOW,),
}
USUAL = ("jpeg2000", "jpegxl", "avif", "htj2k", "webp", "jpeg")


def peers_named(names: Sequence[str]) -> tuple[Contender, ...]:
    """In the order of the names. Raises UsageError for one that is not known."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise UsageError(f"no codec is called {unknown[0]!r}; allowed are {', '.join(PEERS)}")
    return tuple(contender for name in dict.fromkeys(names) for contender in PEERS[name])
