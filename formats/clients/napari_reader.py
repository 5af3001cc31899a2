"""A reader for napari: a compressed slide as a lazy multiscale image in microns.

The manifest `napari.yaml` names `get_reader`; napari finds it by the entry point `napari.manifest`. Pixels come through
`histocodec.view`, so what is on the screen is what is decoded.
"""

import os
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from histocodec.formats.container.read import is_container
from histocodec.formats.decode.ome_zarr import title_of, view
from histocodec.formats.decode.slide import CompressedSlide, open_compressed
from histocodec.slide import Mpp

LayerData = tuple[Any, dict[str, Any], str]  # data, arguments of the layer, kind of layer
Reader = Callable[[str | Sequence[str]], list[LayerData]]

UNITS_SINCE = (0, 6)  # the version of napari from which layers have units


def get_reader(path: str | Sequence[str]) -> Reader | None:
    """napari's question whether a path, or each of several, is read here: the reader, or None."""
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    return read if paths and all(is_container(each) for each in paths) else None


def read(path: str | Sequence[str]) -> list[LayerData]:
    """A layer for each container: an RGB image of all levels, (y, x, c) uint8 dask arrays with a scale in microns. Its
    metadata hold properties, objective power and associated images; these are no layers, since napari draws no scale
    bar where one layer has units and another has none."""
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    return [_layer(open_compressed(each)) for each in paths]


def _layer(slide: CompressedSlide) -> LayerData:
    import dask.array as da
    import zarr

    group = zarr.open_group(view(slide), mode="r")
    levels = [da.from_zarr(group[str(number)]).transpose(1, 2, 0) for number in range(len(slide.levels))]
    metadata = {
        "properties": dict(slide.properties),
        "objective_power": slide.objective_power,
        "mpp": slide.mpp,
        "associated": slide.associated,
    }
    arguments = {
        "name": title_of(slide),
        "rgb": True,
        "multiscale": len(levels) > 1,
        "metadata": metadata,
        **_placed(slide.mpp),
    }
    return levels if len(levels) > 1 else levels[0], arguments, "image"


def _placed(mpp: Mpp | None) -> dict[str, Any]:
    """Scale and units of the axes y and x; nothing where the resolution is not known: napari then counts pixels."""
    if mpp is None:
        return {}
    return {"scale": (mpp[1], mpp[0]), **({"units": ("micrometer", "micrometer")} if _knows_units() else {})}


def _knows_units() -> bool:
    try:
        major, minor, *_ = version("napari").split(".")
        return (int(major), int(minor)) >= UNITS_SINCE
    except (PackageNotFoundError, ValueError):
        return False
