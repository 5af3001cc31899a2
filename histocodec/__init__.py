"""histocodec: a neural codec and file format for whole-slide pathology images.

    import histocodec

    histocodec.encode("slide.svs", "slide.hcz", quality=60)
    with histocodec.open("slide.hcz") as slide:
        pixels = slide.read_array(10_000, 8_000, 1024, 1024)  # (1024, 1024, 3) uint8

Importing the package loads nothing else; each name is loaded from its module when it is first used. (With the
environment variable HISTOCODEC_PATCH_OPENSLIDE=1, importing it also calls `patch_openslide`.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

if TYPE_CHECKING:
    from histocodec.errors import (
        BusyError,
        FormatError,
        HistocodecError,
        MissingModelError,
        OutputError,
        SourceError,
        StoreError,
        UnsupportedError,
        UsageError,
    )
    from histocodec.formats.clients.openslide_patch import patch_openslide
    from histocodec.formats.container.store import Location
    from histocodec.formats.decode.ome_zarr import view
    from histocodec.formats.decode.open import open_slide
    from histocodec.formats.decode.settings import configure
    from histocodec.formats.decode.slide import CompressedSlide
    from histocodec.formats.encode.options import EncodeOptions, EncodeProgress
    from histocodec.formats.encode.report import EncodeReport
    from histocodec.formats.export.export import Exported, export
    from histocodec.geometry import Level, Region
    from histocodec.slide import Slide
    from histocodec.sources.array import ArraySlide

    __version__: str

__all__ = [
    "ArraySlide",
    "BusyError",
    "CompressedSlide",
    "EncodeOptions",
    "EncodeProgress",
    "EncodeReport",
    "Exported",
    "FormatError",
    "HistocodecError",
    "Level",
    "MissingModelError",
    "OutputError",
    "Region",
    "Slide",
    "SourceError",
    "StoreError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "configure",
    "encode",
    "export",
    "open",
    "open_slide",
    "patch_openslide",
    "view",
]

_HOMES = {
    "ArraySlide": "histocodec.sources.array",
    "BusyError": "histocodec.errors",
    "CompressedSlide": "histocodec.formats.decode.slide",
    "EncodeOptions": "histocodec.formats.encode.options",
    "EncodeProgress": "histocodec.formats.encode.options",
    "EncodeReport": "histocodec.formats.encode.report",
    "Exported": "histocodec.formats.export.export",
    "FormatError": "histocodec.errors",
    "HistocodecError": "histocodec.errors",
    "Level": "histocodec.geometry",
    "MissingModelError": "histocodec.errors",
    "OutputError": "histocodec.errors",
    "Region": "histocodec.geometry",
    "Slide": "histocodec.slide",
    "SourceError": "histocodec.errors",
    "StoreError": "histocodec.errors",
    "UnsupportedError": "histocodec.errors",
    "UsageError": "histocodec.errors",
    "configure": "histocodec.formats.decode.settings",
    "export": "histocodec.formats.export.export",
    "open_slide": "histocodec.formats.decode.open",
    "patch_openslide": "histocodec.formats.clients.openslide_patch",
    "view": "histocodec.formats.decode.ome_zarr",
}


class EncodeChoices(TypedDict, total=False):
    """The keywords of `encode`: the fields of `EncodeOptions`, which says what each means."""

    quality: float | None
    target_psnr: float | None
    target_bpp: float | None
    ratio: float | None
    min_psnr: float | None
    effort: float | None
    model: str
    levels: tuple[int, ...] | None
    background: str
    on_error: str
    device: str
    workers: int | None
    overwrite: bool
    resume: bool
    keep_label: bool
    keep_macro: bool
    keep_private: bool
    embed_model: bool
    model_beside: bool
    chunk: int
    overview: int | None
    source_name: str
    source_sha256: bool


def open(
    path: Location, *, device: str = "auto", cache_bytes: int | None = None, workers: int | None = None
) -> CompressedSlide:
    """Open a compressed slide: a folder, one file (.hcz), the URL of either (https, s3, gs, az; needs the extra
    `remote`), or what a `zarr.abc.store.Store` holds.

    `device` is "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:N". All slides share the process's threads and
    its cache of decoded latents and pixels, which `configure` sets; `workers` and `cache_bytes` give this slide its
    own. Raises UsageError where the path does not exist, UnsupportedError where it is no container of this version,
    MissingModelError where the model is not installed, FormatError where the container is broken, and StoreError where
    a server cannot be reached or refuses.
    """
    from histocodec.formats.decode.slide import open_compressed

    return open_compressed(path, device=device, cache_bytes=cache_bytes, workers=workers)


def encode(
    source: str | Path | Slide,
    dst: str | Path,
    *,
    progress: Callable[[EncodeProgress], None] | None = None,
    **options: Unpack[EncodeChoices],
) -> EncodeReport:
    """Compress a slide, given by its path or already open, into a new container `dst`, a path or a URL
    (s3://, gs://, az://).

    The options are those of `histocodec encode` and the fields of `EncodeOptions`. `progress` is called from time to
    time. A slide that the caller opened stays open. Raises UsageError for options that make no sense, SourceError where
    the slide cannot be read, UnsupportedError where it is no slide, MissingModelError where the model is not installed,
    and OutputError where `dst` cannot be written or exists already.
    """
    from histocodec.formats.encode.encode import encode_slide
    from histocodec.formats.encode.options import EncodeOptions

    chosen = EncodeOptions(**options)
    if not isinstance(source, (str, Path)):
        return encode_slide(source, dst, chosen, progress=progress)
    from histocodec.formats.decode.open import open_slide

    with open_slide(source) as slide:
        return encode_slide(slide, dst, chosen, progress=progress)


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = import_module("histocodec.version").VERSION
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'histocodec' has no attribute {name!r}")
    globals()[name] = value
    return value


if os.environ.get("HISTOCODEC_PATCH_OPENSLIDE") == "1":
    __getattr__("patch_openslide")()  # type: ignore[operator]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
