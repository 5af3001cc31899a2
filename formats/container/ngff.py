"""OME-NGFF 0.5 metadata of the overview, so that viewers of OME-Zarr show a container as a small RGB image."""

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
    unit = {} if attributes.mpp is None else {"unit": "micrometer"}
    dataset = {"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}]}
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space", **unit} for name in "yx")]
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    channels = [{"label": label, "color": colour, "window": window, "active": True} for label, colour in CHANNELS]
    return {
        "ome": {
            "version": NGFF_VERSION,
            "multiscales": [{"name": "overview", "axes": axes, "datasets": [dataset]}],
            "omero": {"channels": channels, "rdefs": {"model": "color"}},
        }
    }
