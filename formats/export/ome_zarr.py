"""A whole slide as OME-Zarr with ordinary codecs, which any Zarr library reads without this package.

It is the image that `histocodec.view` shows, with the same metadata, but stored: 0.5 in shards of 8 × 8 chunks (Zarr
v3), 0.4 in a file for each chunk (Zarr v2). Associated images are images of their own, below `associated`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from histocodec.formats.container.files import whole_folder
from histocodec.formats.container.ngff import channels_of, multiscales_of
from histocodec.formats.decode.ome_zarr import NgffVersion, profile_attribute, title_of
from histocodec.formats.export.order import Order
from histocodec.geometry import Region
from histocodec.slide import WHITE, Pixels, mpp_at

if TYPE_CHECKING:
    import zarr

CHUNK = 512  # pixels a side, those of the container
SHARD = 8  # chunks a side, written at once: 48 MiB of pixels
ZSTD_LEVEL = 3  # as numcodecs and zstd themselves choose it
SQUARE = 2048  # pixels a side that are decoded between two steps of the progress bar


def write_ome_zarr(order: Order, *, version: NgffVersion, overwrite: bool) -> None:
    """Writes the folder, which is complete or absent. Memory: about three shards, 150 MB, however large the slide is.

    Raises OutputError, and FormatError where the slide cannot be read.
    """
    import zarr

    slide = order.slide
    levels, total, done = list(enumerate(slide.levels)), sum(level.region.area for level in slide.levels), 0
    sizes = [(level.width, level.height) for level in slide.levels]
    scales = [mpp_at(order.mpp, level.downsample) or (level.downsample, level.downsample) for level in slide.levels]
    with whole_folder(order.out, replace=overwrite) as folder:
        group = zarr.open_group(folder, mode="w", zarr_format=3 if version == "0.5" else 2)
        datasets = [(str(number), (scale[1], scale[0])) for number, scale in enumerate(scales)]
        image = multiscales_of(title_of(slide), datasets, in_microns=order.mpp is not None)
        attributes: dict[str, Any] = {**_ome(image, version), **profile_attribute(slide)}
        group.attrs.update({**attributes, "histocodec_export": _facts(order)})
        for number, level in levels:
            array = _array(group, str(number), sizes[number], order, version)
            side = CHUNK * (SHARD if version == "0.5" else 1)
            for region in _squares(level.region, side):
                pixels = np.empty((3, region.height, region.width), np.uint8)
                for square in _squares(region, SQUARE):
                    pixels[:, *square.within(region)] = slide.read(square, number).transpose(2, 0, 1)
                    done += square.area
                    if order.progress is not None:
                        order.progress(done, total)
                array[:, region.y : region.y_end, region.x : region.x_end] = pixels
        for name, pixels in slide.associated.items():
            _write_associated(group.require_group("associated"), name, pixels, order, version)


def _write_associated(group: "zarr.Group", name: str, pixels: Pixels, order: Order, version: NgffVersion) -> None:
    image = group.create_group(name)
    image.attrs.update(_ome(multiscales_of(name, [("0", (1.0, 1.0))], in_microns=False), version))
    _array(image, "0", (pixels.shape[1], pixels.shape[0]), order, version)[:] = pixels.transpose(2, 0, 1)


def _ome(multiscales: list[dict[str, object]], version: NgffVersion) -> dict[str, Any]:
    if version == "0.5":
        return {"ome": {"version": "0.5", "multiscales": multiscales, "omero": channels_of()}}
    return {"multiscales": [{"version": "0.4", **scale} for scale in multiscales], "omero": channels_of()}


def _array(group: "zarr.Group", name: str, size: tuple[int, int], order: Order, version: NgffVersion) -> Any:
    """An empty array (3, h, w) uint8."""
    common: dict[str, Any] = {"shape": (3, size[1], size[0]), "dtype": "uint8", "fill_value": WHITE[0]}
    if version == "0.5":
        from zarr.codecs import BloscCodec, ZstdCodec

        side = CHUNK * SHARD
        return group.create_array(
            name,
            **common,
            chunks=(3, CHUNK, CHUNK),
            shards=(3, side, side),
            compressors=ZstdCodec(level=ZSTD_LEVEL) if order.codec == "zstd" else BloscCodec(shuffle="bitshuffle"),
            dimension_names=("c", "y", "x"),
        )
    import numcodecs

    compressor = (
        numcodecs.Zstd(ZSTD_LEVEL) if order.codec == "zstd" else numcodecs.Blosc(shuffle=numcodecs.Blosc.BITSHUFFLE)
    )
    array = group.create_array(
        name,
        **common,
        chunks=(3, CHUNK, CHUNK),
        compressors=compressor,
        chunk_key_encoding={"name": "v2", "configuration": {"separator": "/"}},
    )
    array.attrs["_ARRAY_DIMENSIONS"] = ["c", "y", "x"]
    return array


def _squares(region: Region, side: int) -> Iterator[Region]:
    """Squares of a region from its corner on, cut at its edges."""
    for y in range(region.y, region.y_end, side):
        for x in range(region.x, region.x_end, side):
            yield Region(x, y, side, side).intersect(region)


def _facts(order: Order) -> dict[str, Any]:
    """What the pixels went through, level by level, and what names the container."""
    attributes = order.slide.container.attributes
    return {
        "container_uid": attributes.provenance.uid or None,
        "objective_power": order.slide.objective_power,
        "lossy_compression": [
            [{"method": loss.words, "ratio": loss.ratio} for loss in order.losses(number)]
            for number in range(len(attributes.levels))
        ],
        "properties": dict(attributes.properties),
    }
