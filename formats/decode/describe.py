"""The facts about a container that `histocodec info` prints, ready for JSON. Needs neither PyTorch nor the model."""

import math

import numpy as np

from histocodec.errors import UnsupportedError
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.read import open_container, sizes
from histocodec.formats.container.states import BACKGROUND, CODED, LOSSLESS
from histocodec.formats.container.store import Location


def describe(location: Location) -> dict[str, object]:
    """The facts about a container: what names it and where it is from, sizes in pixels and bytes, rates in bits per
    pixel, ratios, PSNR in dB, block errors in grey values, and counts of chunks by tile state. `chunk` is the side of a
    chunk in pixels. Raises what `open_container` raises, and FormatError where a map is damaged.
    Memory: at most 24 bytes for each chunk that the maps claim."""
    container = open_container(location)
    attributes, provenance = container.attributes, container.attributes.provenance
    first = attributes.levels[0]
    pixels = first.width * first.height
    return {
        "path": container.name,
        "format_version": attributes.version,
        "uid": provenance.uid or None,
        "digest": provenance.digest or None,
        "created": provenance.created or None,
        "generator": attributes.generator,
        "settings": dict(provenance.settings),
        "features": dict(provenance.features),
        "extensions": list(provenance.extensions),
        "model": attributes.model.id,
        "model_sha256": attributes.model.sha256,
        "model_family": attributes.model.family,
        "stride": attributes.model.stride,
        "channels": attributes.model.channels,
        "model_embedded": attributes.model.embedded is not None,
        "chunk": attributes.chunk_side,
        "width": first.width,
        "height": first.height,
        "mpp": None if attributes.mpp is None else list(attributes.mpp),
        "objective_power": attributes.objective_power,
        **_sizes(container, pixels),
        "levels": [_level(container, number) for number in range(len(attributes.levels))],
        "background": {"mode": attributes.background.mode, "colour": list(attributes.background.colour)},
        "source": {
            "name": attributes.source.name,
            "bytes": attributes.source.bytes,
            "vendor": attributes.source.vendor,
            "sha256": attributes.source.sha256,
        },
        "icc_profile_bytes": attributes.icc,
        "overview": None if attributes.overview is None else list(attributes.overview),
        "associated": list(attributes.associated),
        "dropped": list(attributes.dropped),
        "properties": dict(attributes.properties),
    }


def _sizes(container: Container, pixels: int) -> dict[str, object]:
    """What the container takes, and what that is per pixel of level 0; all None in a folder that cannot be listed."""
    attributes = container.attributes
    names = ("bytes", "latent_bytes", "lossless_bytes", "overhead", "bpp", "ratio_raw", "ratio_source_file")
    try:
        stored = sizes(container.store)
    except UnsupportedError:
        return dict.fromkeys((*names, "ratio_level0"))
    level0 = sum(container.level_bytes(0))
    source = attributes.source.bytes
    values = (
        stored.total,
        stored.latents,
        stored.lossless,
        (stored.total - stored.latents - stored.lossless) / stored.total,
        8 * stored.total / pixels,
        3 * pixels / stored.total,
        source / stored.total if source else None,
    )
    return {**dict(zip(names, values, strict=True)), "ratio_level0": 3 * pixels / level0 if level0 else None}


def _level(container: Container, number: int) -> dict[str, object]:
    level, tiles = container.attributes.levels[number], container.tiles(number)
    psnr, block_error = container.psnr(number), container.block_error(number)
    finite = psnr[np.isfinite(psnr)]
    measured = np.zeros(0) if block_error is None else block_error[~np.isnan(block_error)]
    return {
        "width": level.width,
        "height": level.height,
        "downsample": level.downsample,
        "dtype": level.dtype,
        "quality": level.quality,
        "derived": level.derived,
        "bytes": level.bytes,
        "bpp": level.bpp,
        "psnr": level.psnr if level.psnr is not None and math.isfinite(level.psnr) else None,
        "worst_psnr": float(finite.min()) if finite.size else None,
        "worst_block_error": float(measured.max()) if measured.size else None,
        "chunks": tiles.size,
        "coded": int((tiles == CODED).sum()),
        "raised": int((container.quality(number)[tiles == CODED] > level.quality).sum()),
        "lossless": int((tiles == LOSSLESS).sum()),
        "background": int((tiles == BACKGROUND).sum()),
    }
