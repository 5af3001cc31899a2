"""`openslide.OpenSlide` taught to open containers, for programs that call it themselves."""

import os
from typing import Any

import openslide

from histocodec.formats.container.read import is_container
from histocodec.formats.decode.slide import CompressedSlide, open_compressed

_plain_detect = openslide.OpenSlide.detect_format


def patch_openslide() -> None:
    """From now on, `openslide.OpenSlide(path)`, `openslide.open_slide(path)` and `OpenSlide.detect_format(path)` take
    containers, too: a path or URL of one gives a `CompressedSlide`, everything else what it gave before. The class
    itself is changed, so programs that imported it earlier see that. Called twice, it does nothing more."""
    openslide.OpenSlide.__new__ = _new  # type: ignore[method-assign,assignment]
    openslide.OpenSlide.detect_format = classmethod(_detect_format)  # type: ignore[method-assign,assignment]


def _new(cls: type[openslide.OpenSlide], filename: Any = None, *arguments: Any, **keywords: Any) -> Any:
    if cls is openslide.OpenSlide and _is_ours(filename):
        return open_compressed(filename)  # no OpenSlide, so Python does not call __init__
    return object.__new__(cls)


def _detect_format(cls: type[openslide.OpenSlide], filename: Any) -> str | None:
    found: str | None = CompressedSlide.detect_format(filename) if _is_ours(filename) else _plain_detect(filename)
    return found


def _is_ours(filename: Any) -> bool:
    return isinstance(filename, str | bytes | os.PathLike) and is_container(filename)
