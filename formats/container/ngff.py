"""OME-NGFF 0.5 metadata of the overview, so that viewers of OME-Zarr show a container as a small RGB image."""

import math
from collections.abc import Sequence
from typing import Any

from histocodec.formats.container.attributes import Attributes

NGFF_VERSION = "0.5"
CHANNELS = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))


def ome_attributes(attributes: Attributes, path: str) -> dict[str, object]:
    """The attribute "ome" of the group from which `path` leads to the overview; {} where there is no overview.

    The scale is in microns where the source states its resolution, else in level-0 pixels, without a unit.
    """
    if attributes.overview is None:
        return {}
    width, height = attributes.overview
    level = attributes.levels[0]
    mpp_x, mpp_y = attributes.mpp or (1.0, 1.0)
    scale = [
        1.0,
        mpp_y * level.downsample * level.height / height,
        mpp_x * level.downsample * level.width / width,
    ]
    datasets = [(path, (scale[1], scale[2]))]
    return {
        "ome": {
            "version": NGFF_VERSION,
            "multiscales": multiscales_of("overview", datasets, in_microns=attributes.mpp is not None),
            "omero": channels_of(),
        }
    }


def shows_overview(ome: Any, attributes: Attributes, path: str) -> bool:
    """Whether the attribute "ome" has the overview as its only image, with the axes and the scale that it has, whatever
    else it says."""
    (expected,) = _dataset_of(ome_attributes(attributes, path)["ome"])
    try:
        (image,), (dataset,) = ome["multiscales"], _dataset_of(ome)
        axes = [axis["name"] for axis in image["axes"]]
        scales = [item["coordinateTransformations"][0]["scale"] for item in (dataset, expected)]
        same = all(math.isclose(ours, theirs, rel_tol=1e-6) for ours, theirs in zip(*scales, strict=True))
        return same and axes == list("cyx") and dataset["path"] == path
    except (KeyError, IndexError, TypeError, ValueError):
        return False


def _dataset_of(ome: Any) -> Any:
    return ome["multiscales"][0]["datasets"]


def multiscales_of(
    name: str, datasets: Sequence[tuple[str, tuple[float, float]]], *, in_microns: bool
) -> list[dict[str, object]]:
    """The member `multiscales` of one image (c, y, x). `datasets` has the path of each level and the size of its pixels
    in y and x, in microns or in pixels of level 0."""
    unit = {"unit": "micrometer"} if in_microns else {}
    axes = [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", **unit} for axis in "yx")]
    described = [
        {"path": path, "coordinateTransformations": [{"type": "scale", "scale": [1.0, *scale]}]}
        for path, scale in datasets
    ]
    return [{"name": name, "axes": axes, "datasets": described}]


def channels_of() -> dict[str, object]:
    """The member `omero`: the three channels of an RGB image."""
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    channels = [{"label": label, "color": colour, "window": window, "active": True} for label, colour in CHANNELS]
    return {"channels": channels, "rdefs": {"model": "color"}}
