"""The attributes of version 2: the attribute "histocodec" of the root group, to JSON and back, strictly checked.

They hold everything that a reader needs beside shards and large maps, so that it asks a store for one small object. The
member `digest` is a SHA-256 of all others, and they hold the SHA-256 of what lies elsewhere: one digest names all.
"""

import base64
import binascii
import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import rfc8785
from numpy.typing import NDArray

from histocodec.errors import FormatError, UnsupportedError, UsageError
from histocodec.formats.container.attributes import (
    DTYPES,
    IMAGE_NAME,
    MAX_ASSOCIATED,
    MAX_CHUNK_SIDE,
    MAX_DOWNSAMPLE,
    MAX_ICC,
    MAX_LEVELS,
    MAX_MAPPED_CHUNKS,
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
    Json,
    LevelAttributes,
    Maps,
    ModelReference,
    Provenance,
    SourceAttributes,
    Stats,
)
from histocodec.formats.container.fields import Node
from histocodec.formats.container.layout import LEAST_STD, MOST_BACKGROUND_LATENT, MOST_STATISTIC
from histocodec.formats.container.maps import MAPS, planes_of
from histocodec.models.config import MODEL_ID, MOST_LATENTS, QUALITIES
from histocodec.normalise import ChannelStats
from histocodec.slide import MPP_RANGE, POWER_RANGE, Colour, Mpp

VERSION = 2
UID = r"[0-9a-f]{32}"
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"  # \d would take the digits of other scripts
FEATURE = r"[a-z][a-z0-9-]{0,63}"
PLANE = r"[a-z][a-z0-9_]{0,63}"
EXTENSION = r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}"  # a domain of whoever owns it, reversed: org.example.study
KINDS = ("critical", "ancillary")
KNOWN_FEATURES = ("lossless",)
MAX_FEATURES = 32
MAX_PLANES = 32
MAX_INLINE = 8192  # bytes of packed maps: with more, they are arrays
MAX_INLINE_VALUES = 1 << 20  # bytes, unpacked
MAX_MAP_BYTES = 1 << 27  # of all levels together, unpacked: 2^22 chunks of 32 bytes

REQUIRED = (
    "version", "uid", "digest", "created", "generator", "model", "chunk", "levels", "normalisation",
    "background", "source",
)  # fmt: skip
OPTIONAL = (
    "features", "settings", "extensions", "mpp", "objective_power", "properties", "icc", "overview", "associated",
    "dropped", "maps", "digests", "planes",
)  # fmt: skip

Value = TypeVar("Value")


def to_json(attributes: Attributes) -> Json:
    """The attribute's value, ready for JSON; the inverse of `from_json`. Members without a value are left out. Raises
    UsageError for values that no JSON can hold."""
    provenance, stats, model = attributes.provenance, attributes.stats, attributes.model
    if stats is None:
        raise UsageError("attributes of version 2 need statistics")
    background: Json = {"mode": attributes.background.mode, "colour": list(attributes.background.colour)}
    if stats.background_latent.any():
        background["latent"] = _packed_floats(stats.background_latent)
    value: Json = {
        "version": VERSION,
        "uid": provenance.uid,
        "created": provenance.created,
        "generator": attributes.generator,
        "features": dict(provenance.features),
        "model": _present(
            id=model.id, sha256=model.sha256, family=model.family, stride=model.stride, channels=model.channels,
            embedded=model.embedded,
        ),
        "chunk": attributes.chunk,
        "levels": [_level_json(level) for level in attributes.levels],
        "normalisation": {"mean": _decimals(stats.channels.mean), "std": _decimals(stats.channels.std)},
        "background": background,
        "mpp": None if attributes.mpp is None else list(attributes.mpp),
        "objective_power": attributes.objective_power,
        "source": _present(
            name=attributes.source.name or None, bytes=attributes.source.bytes, vendor=attributes.source.vendor,
            sha256=attributes.source.sha256,
        ),
        "settings": dict(provenance.settings),
        "properties": dict(attributes.properties),
        "icc": None if attributes.icc is None else {"bytes": attributes.icc, "sha256": attributes.sha256["icc"]},
        "overview": _image_json(attributes.overview, attributes.sha256.get("overview")),
        "associated": [
            {"name": name, **(_image_json(size, attributes.sha256[f"associated-{name}"]) or {})}
            for name, size in attributes.associated.items()
        ],
        "dropped": list(attributes.dropped),
        "extensions": dict(provenance.extensions),
        "planes": [list(pair) for pair in attributes.maps.more],
        "maps": None if attributes.maps.inline is None else base64.b64encode(attributes.maps.inline).decode(),
        "digests": attributes.maps.digests,
    }  # fmt: skip
    value = {name: member for name, member in value.items() if member is not None and member not in ({}, [])}
    return {**value, "digest": digest_of(value)}


def digest_of(value: Mapping[str, object]) -> str:
    """The container's digest: the SHA-256 of the attribute without its member `digest`, as canonical JSON (RFC 8785).
    Raises UsageError for values that JSON cannot hold."""
    others: Any = {name: member for name, member in value.items() if name != "digest"}
    try:
        return hashlib.sha256(rfc8785.dumps(others)).hexdigest()
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as exc:
        raise UsageError(f"the attributes cannot be written as JSON: {exc}") from exc


def from_json(node: Node) -> Attributes:
    """The attributes in a JSON value of version 2. Raises UnsupportedError for a critical feature or a family of models
    that is unknown, and FormatError, naming the field, for everything else that is not allowed."""
    features = _features(node)
    f = _members(node, REQUIRED, OPTIONAL, features)
    digest = f["digest"].text(64, SHA256)
    try:
        computed = digest_of(node.members())
    except UsageError as exc:  # half a surrogate pair, or an integer beyond 2^53
        raise FormatError(f"{node.where}: {exc}") from exc
    if computed != digest:
        raise FormatError(
            f"{f['digest'].where}: the attributes do not have this SHA-256: they were altered. If that was on purpose, "
            "`histocodec seal` recomputes it"
        )
    model = _model(f["model"])
    chunk = f["chunk"].integer(4, 64)
    if chunk % 4 or chunk * model.stride > MAX_CHUNK_SIDE:
        raise FormatError(
            f"{f['chunk'].where}: found {chunk}; allowed is a multiple of 4 with at most {MAX_CHUNK_SIDE} pixels a side"
        )
    background, latent = _background(f["background"], model.channels)
    sha256: dict[str, str] = {}
    attributes = Attributes(
        version=VERSION,
        generator=f["generator"].text(MAX_TEXT),
        model=model,
        levels=tuple(_level(item) for item in f["levels"].items(1, MAX_LEVELS)),
        background=background,
        source=_source(f["source"]),
        mpp=_optional(f, "mpp", _mpp),
        objective_power=_optional(f, "objective_power", lambda n: n.number(*POWER_RANGE)),
        properties=_optional(f, "properties", Node.strings) or {},
        icc=_optional(f, "icc", lambda n: _icc(n, sha256)),
        overview=_optional(f, "overview", lambda n: _image(n, "overview", MAX_SIDE_OVERVIEW, sha256)),
        associated=_optional(f, "associated", lambda n: _associated(n, sha256)) or {},
        dropped=_optional(f, "dropped", _dropped) or (),
        chunk=chunk,
        stats=_stats(f["normalisation"], background.colour, latent),
        provenance=Provenance(
            uid=f["uid"].text(32, UID),
            created=f["created"].text(20, TIME),
            settings=_optional(f, "settings", Node.members) or {},
            features=features,
            extensions=_optional(f, "extensions", _extensions) or {},
            digest=digest,
        ),
        maps=Maps(
            inline=_optional(f, "maps", lambda n: _base64(n, MAX_INLINE)),
            digests=_optional(f, "digests", lambda n: n.text(64, SHA256)),
            more=_optional(f, "planes", _planes) or (),
        ),
        sha256=sha256,
    )
    attributes.check_levels(f["levels"].where, MAX_MAPPED_CHUNKS)
    _check_maps(attributes, node.where)
    return attributes


def _check_maps(attributes: Attributes, where: str) -> None:
    """Maps are either all within the attributes or all in arrays."""
    arrays = [level.maps is not None for level in attributes.levels]
    inline = attributes.maps.inline is not None
    if inline == (attributes.maps.digests is not None) or not all(array != inline for array in arrays):
        raise FormatError(f"{where}: needs either maps, or digests and maps in every level")
    grids = [attributes.grid(level) for level in range(len(attributes.levels))]
    size = sum(grid.chunk_rows * grid.chunk_columns for grid in grids) * planes_of(attributes.maps.more)
    if size > MAX_MAP_BYTES:
        raise FormatError(f"{where}: its maps would have {size} bytes; at most {MAX_MAP_BYTES} are allowed")


def _features(node: Node) -> dict[str, str]:
    members = node.members()
    if "features" not in members:
        return {}
    found = {}
    listed = node.member("features").members()
    if len(listed) > MAX_FEATURES:
        raise FormatError(f"{node.where}.features: has {len(listed)} members; at most {MAX_FEATURES} are allowed")
    for name in listed:
        if not re.fullmatch(FEATURE, name):
            raise FormatError(f"{node.where}.features: {name[:80]!r} is no name of a feature")
        found[name] = node.member("features").member(name).choice(KINDS)
    for name in KNOWN_FEATURES:
        if found.get(name, "critical") != "critical":
            raise FormatError(f"{node.where}.features.{name}: found {found[name]!r}; allowed is 'critical'")
    unknown = sorted(name for name, kind in found.items() if kind == "critical" and name not in KNOWN_FEATURES)
    if unknown:
        raise UnsupportedError(
            f"{node.where}: needs the feature {unknown[0]!r}, which this version of histocodec does not have; it knows "
            f"{', '.join(KNOWN_FEATURES)}. A later version reads this container"
        )
    return found


def _members(
    node: Node, required: tuple[str, ...], optional: tuple[str, ...], features: Mapping[str, str] | tuple[()] = ()
) -> dict[str, Node]:
    """The members of an object: all required ones, and of the optional ones those that are there. Members with the name
    of a feature are the feature's, and are ignored here."""
    members = node.members()
    unknown = sorted(members.keys() - {*required, *optional, *features})
    missing = [name for name in required if name not in members]
    if missing:
        raise FormatError(f"{node.where}: field {missing[0]!r} is missing")
    if unknown:
        allowed = ", ".join((*required, *optional))
        raise FormatError(f"{node.where}: field {unknown[0][:80]!r} is unknown; allowed are {allowed}")
    return {name: Node(members[name], f"{node.where}.{name}") for name in (*required, *optional) if name in members}


def _optional(members: Mapping[str, Node], name: str, read: Callable[[Node], Value]) -> Value | None:
    return read(members[name]) if name in members else None


def _present(**members: object) -> Json:
    return {name: value for name, value in members.items() if value is not None}


def _level_json(level: LevelAttributes) -> Json:
    return _present(
        width=level.width, height=level.height, downsample=level.downsample, dtype=level.dtype, quality=level.quality,
        bytes=level.bytes, psnr="Infinity" if level.psnr == np.inf else level.psnr, derived=level.derived or None,
        shard=level.shard, maps=level.maps,
    )  # fmt: skip


def _image_json(size: tuple[int, int] | None, sha256: str | None) -> Json | None:
    return None if size is None else {"width": size[0], "height": size[1], "sha256": sha256}


def _decimals(values: NDArray[np.float32]) -> list[float]:
    """The shortest decimals that round to these float32."""
    return [float(str(value)) for value in values.astype(np.float32)]


def _packed_floats(values: NDArray[np.float32]) -> str:
    return base64.b64encode(gzip.compress(values.astype("<f4").tobytes(), mtime=0)).decode()


def _base64(node: Node, most: int) -> bytes:
    text = node.text(4 * ((most + 2) // 3))
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise FormatError(f"{node.where}: is not base64: {exc}") from exc
    if len(data) > most:  # by a byte or two, which the length of the text does not tell
        raise FormatError(f"{node.where}: holds {len(data)} bytes; at most {most} are allowed")
    return data


def inflate(data: bytes, size: int, where: str) -> bytes:
    """The `size` bytes that one gzip member holds. Allocates no more. Raises FormatError, which begins with `where`."""
    unpacker = zlib.decompressobj(31)
    try:
        raw = unpacker.decompress(data, size + 1)
    except zlib.error as exc:
        raise FormatError(f"{where}: is not sound gzip data: {exc}") from exc
    if len(raw) != size or not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"{where}: does not hold {size} bytes as one gzip member")
    return raw


def _model(node: Node) -> ModelReference:
    f = _members(node, ("id", "sha256", "family", "stride", "channels"), ("embedded",))
    family = f["family"].text(MAX_TEXT)
    if family not in STRIDES:
        raise UnsupportedError(f"{f['family'].where}: {family!r}; this version reads {', '.join(STRIDES)}")
    stride, channels = f["stride"].integer(1, MAX_CHUNK_SIDE), f["channels"].integer(4, MOST_LATENTS)
    if stride not in STRIDES[family]:
        allowed = ", ".join(map(str, STRIDES[family]))
        raise FormatError(f"{f['stride'].where}: found {stride}; {allowed} is allowed for the family {family}")
    if channels % 4:
        raise FormatError(
            f"{f['channels'].where}: found {channels}; allowed is a multiple of 4 from 4 to {MOST_LATENTS}"
        )
    embedded = _optional(f, "embedded", lambda n: n.integer(1, MAX_MODEL))
    return ModelReference(f["id"].text(64, MODEL_ID), f["sha256"].text(64, SHA256), channels, stride, family, embedded)


def _level(node: Node) -> LevelAttributes:
    required = ("width", "height", "downsample", "dtype", "quality", "bytes", "shard")
    f = _members(node, required, ("psnr", "derived", "maps"))
    psnr = f.get("psnr")
    return LevelAttributes(
        width=f["width"].integer(1, MAX_SIDE),
        height=f["height"].integer(1, MAX_SIDE),
        downsample=f["downsample"].number(1.0, MAX_DOWNSAMPLE),
        dtype=f["dtype"].choice(DTYPES),
        quality=f["quality"].integer(0, QUALITIES - 1),
        bytes=f["bytes"].integer(0, 2**53 - 1),
        psnr=None if psnr is None else np.inf if psnr.value == "Infinity" else psnr.number(0, 200),
        derived=_optional(f, "derived", Node.boolean) or False,
        shard=f["shard"].integer(1, 32),
        maps=_optional(f, "maps", lambda n: n.text(64, SHA256)),
    )


def _background(node: Node, channels: int) -> tuple[BackgroundAttributes, NDArray[np.float32]]:
    f = _members(node, ("mode", "colour"), ("latent",))
    red, green, blue = (item.integer(0, 255) for item in f["colour"].items(3, 3))
    latent = np.zeros(channels, np.float32)
    if "latent" in f:
        packed = _base64(f["latent"], 2 * 4 * channels + 1024)
        latent = np.frombuffer(inflate(packed, 4 * channels, f["latent"].where), "<f4").astype(np.float32)
        if not (np.abs(latent) <= MOST_BACKGROUND_LATENT).all():  # never true of NaN
            raise FormatError(f"{f['latent'].where}: has values beyond ±{MOST_BACKGROUND_LATENT:g}")
    return BackgroundAttributes(f["mode"].choice(MODES), (red, green, blue)), latent


def _stats(node: Node, colour: Colour, latent: NDArray[np.float32]) -> Stats:
    f = _members(node, ("mean", "std"), ())
    mean = [item.number(-MOST_STATISTIC, MOST_STATISTIC) for item in f["mean"].items(3, 3)]
    std = [item.number(LEAST_STD, MOST_STATISTIC) for item in f["std"].items(3, 3)]
    channels = ChannelStats(np.array(mean, np.float32), np.array(std, np.float32))
    return Stats(channels, np.array(colour, np.uint8), latent)


def _source(node: Node) -> SourceAttributes:
    f = _members(node, ("vendor",), ("name", "bytes", "sha256"))
    return SourceAttributes(
        _optional(f, "name", lambda n: n.text(MAX_TEXT)) or "",
        _optional(f, "bytes", lambda n: n.integer(0, 2**53 - 1)),
        f["vendor"].text(MAX_TEXT),
        _optional(f, "sha256", lambda n: n.text(64, SHA256)),
    )


def _mpp(node: Node) -> Mpp:
    x, y = (item.number(*MPP_RANGE) for item in node.items(2, 2))
    return x, y


def _icc(node: Node, sha256: dict[str, str]) -> int:
    f = _members(node, ("bytes", "sha256"), ())
    sha256["icc"] = f["sha256"].text(64, SHA256)
    return f["bytes"].integer(1, MAX_ICC)


def _image(node: Node, array: str, most: int, sha256: dict[str, str]) -> tuple[int, int]:
    f = _members(node, ("width", "height", "sha256"), ())
    sha256[array] = f["sha256"].text(64, SHA256)
    return f["width"].integer(1, most), f["height"].integer(1, most)


def _associated(node: Node, sha256: dict[str, str]) -> dict[str, tuple[int, int]]:
    images: dict[str, tuple[int, int]] = {}
    for item in node.items(0, MAX_ASSOCIATED):
        members = item.members()
        name = item.member("name").text(64, IMAGE_NAME)
        if name.casefold() in {other.casefold() for other in images}:  # they become folders, and disks may ignore case
            raise FormatError(f"{item.where}: the name {name!r} occurs twice")
        rest = Node({key: value for key, value in members.items() if key != "name"}, item.where)
        images[name] = _image(rest, f"associated-{name}", MAX_SIDE_ASSOCIATED, sha256)
    return images


def _dropped(node: Node) -> tuple[str, ...]:
    return tuple(item.text(MAX_TEXT) for item in node.items(0, MAX_ASSOCIATED))


def _planes(node: Node) -> tuple[tuple[str, int], ...]:
    more = []
    for item in node.items(1, MAX_PLANES):
        name, width = item.items(2, 2)
        more.append((name.text(64, PLANE), width.integer(1, 8)))
    taken = [name for name, _ in (*MAPS, *more)]
    if len(set(taken)) != len(taken):
        raise FormatError(f"{node.where}: names a map twice, or one of {', '.join(name for name, _ in MAPS)}")
    return tuple(more)


def _extensions(node: Node) -> dict[str, object]:
    members = node.members()
    for name in members:
        if not re.fullmatch(EXTENSION, name):
            raise FormatError(f"{node.where}: {name[:80]!r} is no name of an extension, such as org.example.study")
    return dict(members)
