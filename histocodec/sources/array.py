"""Slides whose pixels are arrays already: numpy, Zarr, and OME-Zarr multiscale groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import SourceError, UnsupportedError
from histocodec.geometry import Region
from histocodec.slide import BaseSlide, Colour, Mpp, Pixels, disbelieved, known_mpp, pyramid_levels
from histocodec.sources.channels import check_colours
from histocodec.sources.microns import checked_mpp, in_microns, stated_mpp, stated_number

if TYPE_CHECKING:
    import zarr

MOST_LISTED = 8  # names in a note

Node = TypeVar("Node")


class ArrayLike(Protocol):
    """What a numpy array and a Zarr array have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        ...

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of an element."""
        ...

    def __getitem__(self, selection: tuple[int | slice, ...], /) -> object: ...


@dataclass(frozen=True)
class _Plane:
    """One level: an array and the names of its axes. Axes other than y, x and c have length 1."""

    array: ArrayLike
    axes: str

    @property
    def size(self) -> tuple[int, int]:
        return self.array.shape[self.axes.index("x")], self.array.shape[self.axes.index("y")]

    def read(self, region: Region) -> Pixels:
        cuts: dict[str, int | slice] = {
            "y": slice(region.y, region.y_end),
            "x": slice(region.x, region.x_end),
            "c": slice(None),
        }
        pixels: NDArray[np.uint8] = np.asarray(self.array[tuple(cuts.get(axis, 0) for axis in self.axes)])
        axes = [axis for axis in self.axes if axis in "yxc"]
        if "c" not in axes:
            pixels, axes = pixels[..., np.newaxis], [*axes, "c"]
        pixels = pixels.transpose([axes.index(axis) for axis in "yxc"])
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


class ArraySlide(BaseSlide):
    """A slide of one array, or of several from large to small, uint8 with one or three channels.

    The arrays are not copied, so leave them alone while the slide is in use. `axes` names the axes of all arrays by
    the letters y, x and, where there are channels, c ("yxc"); by default it is guessed from the shape. `mpp` is in
    microns per pixel of level 0; one number means square pixels. Raises UnsupportedError for arrays that are no image,
    and UsageError for a size or colour that is none.
    """

    def __init__(
        self,
        arrays: ArrayLike | Sequence[ArrayLike],
        *,
        axes: str | None = None,
        name: str = "array",
        mpp: float | Mpp | None = None,
        background: Colour | None = None,
        properties: Mapping[str, str] | None = None,
        icc_profile: bytes | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        levels = list(arrays) if isinstance(arrays, Sequence) else [arrays]
        if not levels:
            raise UnsupportedError(f"{name}: no arrays; a slide has at least one level")
        self._planes = [_checked_plane(array, axes, name) for array in levels]
        sizes = [plane.size for plane in self._planes]
        if any(small[0] > large[0] or small[1] > large[1] for large, small in pairwise(sizes)):
            raise UnsupportedError(f"{name}: levels must go from large to small, found {sizes}")
        super().__init__(
            name=name,
            levels=pyramid_levels(sizes),
            mpp=None if mpp is None else checked_mpp(mpp),
            properties=properties,
            icc_profile=icc_profile,
            background=background,
            notes=notes,
        )

    def _read_inside(self, region: Region, level: int) -> Pixels:
        try:
            pixels = self._planes[level].read(region)
        except Exception as exc:  # a Zarr codec or store has its own exceptions
            raise SourceError(f"{self.name}: level {level}, region {region} cannot be read: {exc}") from exc
        return pixels.copy()  # the caller owns what it gets, even where the array is in memory


def _checked_plane(array: ArrayLike, axes: str | None, name: str) -> _Plane:
    shape = tuple(array.shape)
    axes = _guessed_axes(shape) if axes is None else axes
    sizes = dict(zip(axes, shape, strict=False))
    further_sizes = [size for axis, size in sizes.items() if axis not in "yxc"]
    if array.dtype != np.uint8:
        raise UnsupportedError(f"{name}: the samples are {array.dtype}; only uint8 is read")
    if len(axes) != len(shape) or len(sizes) != len(axes) or not {"y", "x"} <= set(axes) or 0 in shape:
        raise UnsupportedError(f"{name}: shape {shape} with axes {axes!r} is no image; (height, width, 3) is")
    if sizes.get("c", 1) not in (1, 3) or any(size != 1 for size in further_sizes):
        raise UnsupportedError(f"{name}: shape {shape} with axes {axes!r}; one or three channels of one image are read")
    return _Plane(array, axes)


def _guessed_axes(shape: tuple[int, ...]) -> str:
    if len(shape) == 2:
        return "yx"
    return "cyx" if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3) else "yxc"


def open_zarr(path: Path, *, mpp: Mpp | None = None, background: Colour | None = None) -> ArraySlide:
    """Open a Zarr array, or a Zarr group that follows OME-NGFF 0.4 or 0.5. `mpp` and `background` take the place of
    what the group says. Raises UnsupportedError for anything else."""
    import zarr  # a heavy import that no other source needs

    from histocodec.sources.regular_store import RegularFiles

    name = str(path)
    try:
        node = zarr.open(RegularFiles(path, read_only=True), mode="r")
    except Exception as exc:  # zarr and its stores raise what they like
        raise UnsupportedError(f"{name}: cannot be opened as Zarr: {exc}") from exc
    if isinstance(node, zarr.Array):
        return ArraySlide(node, name=name, mpp=mpp, background=background)
    if "histocodec" in node.attrs:
        raise UnsupportedError(f"{name}: is a compressed slide already; open it as a container, not as a source")
    try:
        group, images = node, ["0"]
        if "bioformats2raw.layout" in _ome(node.attrs):
            group = _child(node, "0", zarr.Group)
            images = sorted((entry.name for entry in path.iterdir() if entry.name.isdecimal()), key=int)
        multiscales = _ome(group.attrs)["multiscales"]
        multiscale = multiscales[0]
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale["axes"]]
        datasets = multiscale["datasets"]
        arrays = [_child(group, dataset["path"], zarr.Array) for dataset in datasets]
        stated = _scale_mpp(axes, [datasets[0], multiscale])
        letters = "".join(str(axis["name"]) for axis in axes)
        channels = [str(channel.get("label", "")) for channel in _omero_channels(group)]
    except (KeyError, IndexError, TypeError, ValueError, OSError) as exc:
        raise UnsupportedError(f"{name}: a Zarr group, but no OME-NGFF 0.4 or 0.5 image: {exc!r}") from exc
    if len(channels) > 1:
        check_colours(channels, name)
    slide = ArraySlide(arrays, axes=letters, name=name, mpp=mpp or known_mpp(stated), background=background)
    slide.notes = (*slide.notes, *disbelieved(stated if mpp is None else None))
    if len(images) > 1:
        slide.notes += (f"{len(images)} images are in the folder, called {_listed(images)}; only image 0 is read",)
    if len(multiscales) > 1:
        slide.notes += (f"{len(multiscales)} multiscales are listed for the image; only the first is read",)
    return slide


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_LISTED]) + (" …" if len(names) > MOST_LISTED else "")


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:  # JSON; checked where it is used
    """The OME-NGFF metadata: version 0.5 keeps it under "ome", 0.4 at the top."""
    nested = attributes.get("ome")
    return nested if isinstance(nested, Mapping) else attributes


def _omero_channels(group: "zarr.Group") -> list[Mapping[str, Any]]:
    omero = _ome(group.attrs).get("omero")
    channels = omero.get("channels", []) if isinstance(omero, Mapping) else []
    return [channel for channel in channels if isinstance(channel, Mapping)]


def _child(group: "zarr.Group", path: str, kind: type[Node]) -> Node:
    node = group[path]
    if not isinstance(node, kind):
        raise TypeError(f"{path} is no {kind.__name__}")
    return node


def _scale_mpp(axes: Sequence[Mapping[str, Any]], holders: Sequence[Mapping[str, Any]]) -> Mpp | None:
    """Microns per pixel: the product of the scales of a dataset and of its multiscale, in the units of the axes."""
    sizes: dict[str, float | None] = {}
    for index, axis in enumerate(axes):
        size = 1.0
        for holder in holders:
            for transform in holder.get("coordinateTransformations", []):
                if transform["type"] == "scale":
                    size *= stated_number(transform["scale"][index]) or 0
        sizes[axis["name"]] = in_microns(size, axis.get("unit", ""))
    return stated_mpp(sizes.get("x"), sizes.get("y"))
