"""Slides of every kind, those that were compressed here among them."""

from pathlib import Path

from histocodec import sources
from histocodec.errors import UsageError
from histocodec.formats.container.read import is_container
from histocodec.slide import Colour, Slide


def open_slide(
    path: str | Path,
    *,
    mpp: float | tuple[float, float] | None = None,
    background: Colour | None = None,
    device: str = "auto",
) -> Slide:
    """`histocodec.sources.open_slide`, and containers too: without this look, one would open as the OME-Zarr
    of its small overview. What a container says about itself cannot be overruled. `device` is for containers.
    """
    if not is_container(Path(path)):
        return sources.open_slide(path, mpp=mpp, background=background)
    if mpp is not None or background is not None:
        raise UsageError(f"{path}: is compressed already; its resolution and background are its own")
    from histocodec.formats.decode.slide import open_compressed

    return open_compressed(path, device=device)
