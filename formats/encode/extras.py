"""What a container carries beside latents: the overview, associated images, the ICC profile, the model itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from histocodec.errors import HistocodecError
from histocodec.formats.container import write as files
from histocodec.formats.container.arrays import Form, pack_values
from histocodec.formats.container.attributes import MAX_ASSOCIATED, MAX_TEXT, Attributes
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.privacy import without_private
from histocodec.models.weights import ModelWeights
from histocodec.slide import Pixels, Slide
from histocodec.tissue import coarse_view

OVERVIEW_SHARE = 0.01  # of the latents' bytes, at most; likewise the thumbnail
OVERVIEW_SIDES = (2048, 1448, 1024, 724, 512, 362, 256, 181, 128, 96)  # tried in turn; smaller ones show nothing
PROPERTY = "property "  # before a property's name in `dropped`
PRIVATE = ("label", "macro")  # they may show a patient's name


def write_extras(
    root: Path, attributes: Attributes, slide: Slide, options: EncodeOptions, weights: ModelWeights
) -> Attributes:
    """Writes them into the container that grows at `root`; the attributes with what was written and left out."""
    latents = sum(level.bytes or 0 for level in attributes.levels)
    overview = _overview(slide, int(latents * OVERVIEW_SHARE))
    kept, dropped = _associated(slide, options, int(latents * OVERVIEW_SHARE))
    icc = slide.icc_profile
    attributes = replace(
        attributes,
        overview=None if overview is None else (overview.shape[1], overview.shape[0]),
        associated={name: (image.shape[1], image.shape[0]) for name, image in kept.items()},
        dropped=_listed(dropped, () if options.keep_private else without_private(slide.properties)[1]),
        icc=len(icc) if icc else None,
        model=replace(attributes.model, embedded=len(weights.data) if options.embed_model else None),
    )
    if overview is not None:
        files.write_array(root, attributes, "overview/0", np.ascontiguousarray(overview.transpose(2, 0, 1)))
    for name, image in kept.items():
        files.write_array(root, attributes, f"associated/{name}", image)
    if icc:
        files.write_array(root, attributes, "metadata/icc", np.frombuffer(icc, np.uint8))
    if options.embed_model:
        files.write_array(root, attributes, "model/weights", np.frombuffer(weights.data, np.uint8))
    return attributes


def _listed(images: tuple[str, ...], properties: tuple[str, ...]) -> tuple[str, ...]:
    """What was left out, as the attributes name it: images by their names, then properties, as many as there is
    room for."""
    named = (*images, *(f"{PROPERTY}{name}"[:MAX_TEXT] for name in properties))
    if len(named) <= MAX_ASSOCIATED:
        return named
    return (*named[: MAX_ASSOCIATED - 1], f"{PROPERTY}and {len(named) - MAX_ASSOCIATED + 1} more")


def _overview(slide: Slide, budget: int) -> Pixels | None:
    """The largest view of the slide whose stored bytes are within the budget; None on a small slide."""
    level = slide.levels[0]
    view: Pixels | None = None
    for side in OVERVIEW_SIDES:
        scale = side / max(level.width, level.height)
        if scale >= 1:
            continue
        width, height = max(1, round(level.width * scale)), max(1, round(level.height * scale))
        if width * height > 2 * budget:  # stained tissue never packs that well
            continue
        if view is None:
            view = coarse_view(slide)
        small = np.asarray(Image.fromarray(view).resize((width, height), Image.Resampling.BOX))
        planes = np.ascontiguousarray(small.transpose(2, 0, 1))
        if len(pack_values(planes, Form(planes.shape, "uint8"))) <= budget:
            return small
    return None


def _associated(slide: Slide, options: EncodeOptions, budget: int) -> tuple[dict[str, Pixels], tuple[str, ...]]:
    """The images to keep, and the names of those that are left out: label and macro unless asked for, and a
    thumbnail that would cost more than it shows."""
    asked = {name for name, keep in zip(PRIVATE, (options.keep_label, options.keep_macro), strict=True) if keep}
    kept: dict[str, Pixels] = {}
    dropped: list[str] = []
    for name in slide.associated:
        image = None
        if name in asked or name == "thumbnail":
            try:
                image = np.ascontiguousarray(slide.associated[name])
            except HistocodecError:
                if name in asked:
                    raise
        if image is not None and name not in asked and len(pack_values(image, Form(image.shape, "uint8"))) > budget:
            image = None
        if image is None:
            dropped.append(name)
        else:
            kept[name] = image
    return kept, tuple(dropped)
