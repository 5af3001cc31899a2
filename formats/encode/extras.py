"""What a container holds beside latents and maps: an overview, associated images, the ICC profile, the model."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from histocodec.errors import HistocodecError, UnsupportedError
from histocodec.formats.container import write as files
from histocodec.formats.container.arrays import MAX_METADATA, Form, pack_values
from histocodec.formats.container.attributes import (
    MAX_ASSOCIATED,
    MAX_ICC,
    MAX_SIDE_ASSOCIATED,
    MAX_TEXT,
    Attributes,
)
from histocodec.formats.container.layout import ASSOCIATED, ICC, MODEL, OVERVIEW
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.overview import least_side, make_overview
from histocodec.formats.encode.privacy import kept_properties, without_private
from histocodec.formats.encode.unreadable import Place
from histocodec.models.weights import ModelWeights
from histocodec.slide import Pixels, Slide
from histocodec.strict_json import well_formed

OVERVIEW_SHARE = 0.01  # of the latents' bytes, at most; the same for the thumbnail
PROPERTY = "property "  # before a property's name in `dropped`
MAX_PROPERTIES = MAX_METADATA // 2  # bytes, as JSON: the other half is for everything else
REGION = "region "  # before the level, place and size of what could not be read
PRIVATE_IMAGES = ("label", "macro")  # they may show a patient's name


def check_extras(slide: Slide, options: EncodeOptions) -> None:
    """Raises UnsupportedError where something that is to be kept is too large for a container: before the work, not
    after it. Decodes the associated images that are to be kept."""
    for name in _requested(options):
        if name not in slide.associated:
            continue
        height, width, _ = slide.associated[name].shape
        if max(width, height) > MAX_SIDE_ASSOCIATED:
            raise UnsupportedError(
                f"{slide.name}: its {name} image has {width}x{height} pixels; up to {MAX_SIDE_ASSOCIATED} on a side "
                f"can be kept. Leave --keep-{name} out"
            )
    if slide.icc_profile is not None and len(slide.icc_profile) > MAX_ICC:
        raise UnsupportedError(
            f"{slide.name}: its ICC profile has {len(slide.icc_profile)} bytes; up to {MAX_ICC} can be kept"
        )
    size = len(json.dumps(kept_properties(slide.properties, options)))
    if size > MAX_PROPERTIES:
        hint = ". Leave --keep-private out" if options.keep_private else ""
        raise UnsupportedError(
            f"{slide.name}: its properties take {size} bytes; up to {MAX_PROPERTIES} can be kept{hint}"
        )


def write_extras(
    root: Path,
    attributes: Attributes,
    slide: Slide,
    options: EncodeOptions,
    weights: ModelWeights,
    unreadable: Sequence[Place] = (),
) -> Attributes:
    """Writes the extras into the partial container at `root`. Returns the attributes with what was written and what was
    left out. Raises OutputError, and SourceError where an image that is to be kept cannot be read."""
    budget = int(sum(level.bytes or 0 for level in attributes.levels) * OVERVIEW_SHARE)
    overview, icc = make_overview(slide, budget, least_side(attributes, options)), slide.icc_profile
    images, dropped_images = _associated(slide, options, budget)
    dropped_properties = () if options.keep_private else without_private(slide.properties)[1]
    attributes = replace(
        attributes,
        overview=None if overview is None else (overview.shape[1], overview.shape[0]),
        associated={name: (image.shape[1], image.shape[0]) for name, image in images.items()},
        dropped=_dropped(dropped_images, unreadable, dropped_properties),
        icc=len(icc) if icc else None,
        model=replace(attributes.model, embedded=len(weights.decoder) if options.embed_model else None),
    )
    sha256: dict[str, str] = {}
    if overview is not None:
        sha256[OVERVIEW] = files.write_values(root, OVERVIEW, np.ascontiguousarray(overview.transpose(2, 0, 1)))
    for name, image in images.items():
        sha256[f"{ASSOCIATED}-{name}"] = files.write_values(root, f"{ASSOCIATED}-{name}", image)
    if icc:
        sha256[ICC] = files.write_values(root, ICC, np.frombuffer(icc, np.uint8))
    if options.embed_model:
        files.write_values(root, MODEL, np.frombuffer(weights.decoder, np.uint8))
    return replace(attributes, sha256=sha256)


def _dropped(images: tuple[str, ...], unreadable: Sequence[Place], properties: tuple[str, ...]) -> tuple[str, ...]:
    """What was left out, as the attributes name it: images, then regions, then properties, as many as there is room
    for. One place is kept for properties."""
    room = MAX_ASSOCIATED - len(images)
    regions = _limited([str(place) for place in unreadable], room - bool(properties), REGION)
    names = (*images, *regions, *_limited(properties, room - len(regions), PROPERTY))
    return tuple(well_formed(name) for name in names)


def _limited(names: Sequence[str], room: int, kind: str) -> list[str]:
    """The names of a kind of thing, as many as there is room for, with the number of the others last."""
    if len(names) <= room:
        return [f"{kind}{name}"[:MAX_TEXT] for name in names]
    return [*(f"{kind}{name}"[:MAX_TEXT] for name in names[: room - 1]), f"{kind}and {len(names) - room + 1} more"]


def _requested(options: EncodeOptions) -> set[str]:
    """The private images that the user keeps."""
    requests = zip(PRIVATE_IMAGES, (options.keep_label, options.keep_macro), strict=True)
    return {name for name, keep in requests if keep}


def _associated(slide: Slide, options: EncodeOptions, budget: int) -> tuple[dict[str, Pixels], tuple[str, ...]]:
    """The images to keep, and the names of the others. Label and macro are kept only on request, a thumbnail only
    within the budget, and other images never."""
    requested = _requested(options)
    images: dict[str, Pixels] = {}
    dropped: list[str] = []
    for name in slide.associated:
        image = None
        if name in requested or name == "thumbnail":
            try:
                image = np.ascontiguousarray(slide.associated[name])
            except HistocodecError:
                if name in requested:
                    raise
        if image is not None and name not in requested and not _fits(image, budget):
            image = None
        if image is None:
            dropped.append(name)
        else:
            images[name] = image
    return images, tuple(dropped)


def _fits(image: Pixels, budget: int) -> bool:
    """Whether a container may hold the image, and in at most `budget` bytes."""
    return max(image.shape) <= MAX_SIDE_ASSOCIATED and len(pack_values(image, Form(image.shape, "uint8"))) <= budget
