"""Opening slides of every kind, containers included."""

import os

from histocodec import sources
from histocodec.errors import UsageError
from histocodec.formats.container.locations import local_path
from histocodec.formats.container.read import names_container
from histocodec.slide import Colour, Slide


def open_slide(
    path: str | bytes | os.PathLike[str],
    *,
    mpp: float | tuple[float, float] | None = None,
    background: Colour | None = None,
    device: str = "auto",
) -> Slide:
    """Opens a slide of any kind: a container, at a path or URL, or whatever `histocodec.sources.open_slide` reads.

    `mpp` (microns per pixel of level 0) and `background` replace what a source states; a container states its own, so
    they raise UsageError there. `device` ("auto", "cpu", "cuda", "cuda:1") decodes containers. Raises what
    `sources.open_slide` and `open_compressed` raise.
    """
    if not names_container(path):  # a container would also open as an OME-Zarr image, that of its small overview
        return sources.open_slide(local_path(os.fsdecode(path)), mpp=mpp, background=background)
    if mpp is not None or background is not None:
        raise UsageError(
            f"{os.fsdecode(path)}: is a container, which states its own resolution and background; leave --mpp and "
            "--background out"
        )
    from histocodec.formats.decode.slide import open_compressed

    return open_compressed(path, device=device)
