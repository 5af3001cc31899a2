"""The attributes of version 1, read from JSON and strictly checked. Nothing writes them any more.

`SPEC-1.md` states the same rules in words, and `schema-1.json` for other programs.
"""

import math
from collections.abc import Callable
from typing import TypeVar

from histocodec.errors import FormatError, UnsupportedError
from histocodec.formats.container.attributes import (
    DTYPES,
    IMAGE_NAME,
    MAX_ASSOCIATED,
    MAX_CHUNK_SIDE,
    MAX_CHUNKS,
    MAX_DOWNSAMPLE,
    MAX_ICC,
    MAX_LEVELS,
    MAX_MODEL,
    MAX_SIDE,
    MAX_SIDE_ASSOCIATED,
    MAX_SIDE_OVERVIEW,
    MAX_TEXT,
    MODES,
    SHA256,
    STRIDES,
    Attributes,
    BackgroundAttributes,
    LevelAttributes,
    ModelReference,
    SourceAttributes,
)
from histocodec.formats.container.fields import Node
from histocodec.models.config import MODEL_ID, MOST_LATENTS, QUALITIES
from histocodec.slide import MPP_RANGE, POWER_RANGE, Mpp

VERSION = 1

Value = TypeVar("Value")


def from_json(node: Node) -> Attributes:
    """The attributes in a JSON value of version 1. Raises UnsupportedError for an unknown family of models, and
    FormatError, naming the field, for everything else that is not allowed."""
    f = node.fields(
        "version", "generator", "model", "chunk", "shard", "levels", "mpp", "objective_power",
        "background", "source", "properties", "icc", "overview", "associated", "dropped",
    )  # fmt: skip
    chunk = f["chunk"].integer(4, 64)
    if chunk % 4:
        raise FormatError(f"{f['chunk'].where}: found {chunk}; allowed is a multiple of 4 from 4 to 64")
    model = _model(f["model"])
    if chunk * model.stride > MAX_CHUNK_SIDE:
        raise FormatError(
            f"{f['chunk'].where}: {chunk} latents of {model.stride} pixels; at most {MAX_CHUNK_SIDE} pixels a side "
            "are allowed"
        )
    attributes = Attributes(
        version=VERSION,
        generator=f["generator"].text(MAX_TEXT),
        model=model,
        levels=tuple(_level(item) for item in f["levels"].items(1, MAX_LEVELS)),
        background=_background(f["background"]),
        source=_source(f["source"]),
        mpp=_optional(f["mpp"], _mpp),
        objective_power=_optional(f["objective_power"], lambda n: n.number(*POWER_RANGE)),
        properties=f["properties"].strings(),
        icc=_optional(f["icc"], lambda n: n.integer(1, MAX_ICC)),
        overview=_optional(f["overview"], _overview),
        associated=_associated(f["associated"]),
        dropped=tuple(item.text(MAX_TEXT) for item in f["dropped"].items(0, MAX_ASSOCIATED)),
        chunk=chunk,
        shard=f["shard"].integer(1, 32),
    )
    attributes.check_levels(f["levels"].where, MAX_CHUNKS)
    return attributes


def _optional(node: Node, read: Callable[[Node], Value]) -> Value | None:
    return None if node.is_null else read(node)


def _model(node: Node) -> ModelReference:
    f = node.fields("id", "sha256", "family", "stride", "channels", "embedded")
    family = f["family"].text(MAX_TEXT)
    if family not in STRIDES:
        raise UnsupportedError(f"{f['family'].where}: {family!r}; this version reads {', '.join(STRIDES)}")
    stride = f["stride"].integer(1, MAX_CHUNK_SIDE)
    if stride not in STRIDES[family]:
        allowed = ", ".join(map(str, STRIDES[family]))
        raise FormatError(f"{f['stride'].where}: found {stride}; {allowed} is allowed for the family {family}")
    channels = f["channels"].integer(4, MOST_LATENTS)
    if channels % 4:
        raise FormatError(
            f"{f['channels'].where}: found {channels}; allowed is a multiple of 4 from 4 to {MOST_LATENTS}"
        )
    return ModelReference(
        id=f["id"].text(64, MODEL_ID),
        sha256=f["sha256"].text(64, SHA256),
        family=family,
        stride=stride,
        channels=channels,
        embedded=_optional(f["embedded"], lambda n: n.integer(1, MAX_MODEL)),
    )


def _level(node: Node) -> LevelAttributes:
    f = node.fields("width", "height", "downsample", "dtype", "quality", "bytes", "psnr")
    return LevelAttributes(
        width=f["width"].integer(1, MAX_SIDE),
        height=f["height"].integer(1, MAX_SIDE),
        downsample=f["downsample"].number(1.0, MAX_DOWNSAMPLE),
        dtype=f["dtype"].choice(DTYPES),
        quality=f["quality"].integer(0, QUALITIES - 1),
        bytes=_optional(f["bytes"], lambda n: n.integer(0, 2**53)),
        psnr=_optional(f["psnr"], _psnr),
    )


def _psnr(node: Node) -> float:
    return math.inf if node.value == "Infinity" else node.number(0, 200)


def _background(node: Node) -> BackgroundAttributes:
    f = node.fields("mode", "colour")
    red, green, blue = (item.integer(0, 255) for item in f["colour"].items(3, 3))
    return BackgroundAttributes(f["mode"].choice(MODES), (red, green, blue))


def _source(node: Node) -> SourceAttributes:
    f = node.fields("name", "bytes", "vendor")
    size = _optional(f["bytes"], lambda n: n.integer(0, 2**53))
    return SourceAttributes(f["name"].text(MAX_TEXT), size, f["vendor"].text(MAX_TEXT))


def _mpp(node: Node) -> Mpp:
    x, y = (item.number(*MPP_RANGE) for item in node.items(2, 2))
    return x, y


def _overview(node: Node) -> tuple[int, int]:
    width, height = (item.integer(1, MAX_SIDE_OVERVIEW) for item in node.items(2, 2))
    return width, height


def _associated(node: Node) -> dict[str, tuple[int, int]]:
    images: dict[str, tuple[int, int]] = {}
    for item in node.items(0, MAX_ASSOCIATED):
        f = item.fields("name", "width", "height")
        name = f["name"].text(64, IMAGE_NAME)
        if name.casefold() in {other.casefold() for other in images}:  # folders, and disks may ignore case
            raise FormatError(f"{item.where}: the name {name!r} occurs twice")
        images[name] = (
            f["width"].integer(1, MAX_SIDE_ASSOCIATED),
            f["height"].integer(1, MAX_SIDE_ASSOCIATED),
        )
    return images
