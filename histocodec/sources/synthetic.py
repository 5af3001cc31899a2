"""An invented H&E section, for demonstrations and tests: no patient, no licence, any size, any seed.

It is drawn as the optical densities of two stains, which the Beer–Lambert law turns into light. This happens band by
band, so that a large slide needs little more memory than its pixels.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from histocodec.errors import UsageError
from histocodec.slide import Pixels
from histocodec.sources.pyramid import box_mean
from histocodec.sources.synthetic_scene import STAMP, Plane, Scene

# Optical density in red, green and blue of one unit of stain.
HAEMATOXYLIN = (0.74, 0.72, 0.36)
EOSIN = (0.08, 0.78, 0.27)
PEN = (1.30, 0.45, 0.95)  # a green marker
BACKGROUND = (243.0, 241.0, 244.0)  # bare glass

BAND = 256  # rows drawn at once
HALO = 2  # rows that the blur needs above and below a band
SENSOR_NOISE = 1.6  # grey values


def synthetic_slide(width: int, height: int, *, seed: int = 0, pen: bool = False) -> Pixels:
    """The pixels (height, width, 3) uint8 of an invented H&E section, as at 0.5 microns per pixel. The same arguments
    give the same pixels. `pen` adds a marker's arc, which no stain model explains. Raises UsageError for a size below
    1."""
    if width < 1 or height < 1:
        raise UsageError(f"a slide needs at least one pixel, found {width}x{height}")
    scene = Scene(width, height, seed)
    image = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        rows = min(BAND, height - top)
        rng = np.random.default_rng([seed, 1, top])
        image[top : top + rows] = _band(scene, top, rows, rng, pen=pen)
    return image


def _band(scene: Scene, top: int, rows: int, rng: np.random.Generator, *, pen: bool) -> Pixels:
    """The rows of the slide from `top` on, (rows, width, 3)."""
    y = np.arange(top - HALO, top + rows + HALO, dtype=np.float32)
    clipped = np.clip(y, 0, scene.height - 1)
    haematoxylin, eosin = _stroma(scene, clipped)
    _draw_glands(scene, haematoxylin, eosin, int(y[0]))
    _draw_nuclei(scene, haematoxylin, eosin, int(y[0]))
    tissue = scene.tissue(clipped)
    stain = 1 + 0.1 * scene.stain.rows(clipped, scene.width)
    haematoxylin *= tissue
    eosin *= tissue * stain
    haematoxylin, eosin = _blurred(haematoxylin), _blurred(eosin)
    ink = _pen(scene, y[HALO:-HALO]) if pen else None
    pixels = np.empty((rows, scene.width, 3), np.uint8)
    for channel in range(3):
        density = haematoxylin * HAEMATOXYLIN[channel] + eosin * EOSIN[channel]
        if ink is not None:
            density += ink * PEN[channel]
        light = np.exp2(density * np.float32(-np.log2(10)))
        light *= BACKGROUND[channel]
        light += rng.standard_normal(light.shape, dtype=np.float32) * np.float32(SENSOR_NOISE)
        pixels[..., channel] = np.clip(np.rint(light), 0, 255)
    return pixels


def _stroma(scene: Scene, y: Plane) -> tuple[Plane, Plane]:
    """Collagen in wavy bundles: a random profile read along a smooth field, broken up by finer noise."""
    width = scene.width
    coarse, medium, small = scene.field
    phase = 3.2 * coarse.rows(y, width) + 1.1 * medium.rows(y, width) + 0.16 * small.rows(y, width)
    phase += np.arange(width, dtype=np.float32) * scene.drift[0]
    phase += y[:, np.newaxis] * scene.drift[1]
    patch, grain, dots = (noise.rows(y, width) for noise in scene.fine)
    fibre = _profile(scene.fibre_profile, phase * 7 + 0.35 * patch)
    strand = _profile(scene.fibre_profile, phase * 25 + 0.8 * grain)
    eosin = 0.29 + 0.075 * fibre + 0.045 * strand + 0.035 * grain + 0.02 * dots + 0.05 * patch
    # Clefts between bundles, where the section has shrunk.
    cleft = np.clip((fibre + 0.5 * patch - 1.75) * 1.6, 0, 0.92)
    eosin = np.clip(eosin, 0.04, None) * (1 - cleft)
    haematoxylin = np.clip(0.045 + 0.02 * patch + 0.012 * grain, 0.01, None) * (1 - cleft)
    return haematoxylin.astype(np.float32), eosin.astype(np.float32)


def _draw_glands(scene: Scene, haematoxylin: Plane, eosin: Plane, top: int) -> None:
    """Draw the glands into both stains, in place. `top` is the row of the slide that the arrays begin with."""
    glands = scene.glands
    bottom, width = top + haematoxylin.shape[0], scene.width
    reach = glands.radius * 1.45
    for index in np.flatnonzero((glands.y + reach > top) & (glands.y - reach < bottom)):
        y0, y1 = (
            max(top, int(glands.y[index] - reach[index])),
            min(bottom, int(glands.y[index] + reach[index])),
        )
        x0, x1 = max(0, int(glands.x[index] - reach[index])), min(width, int(glands.x[index] + reach[index]))
        if y0 >= y1 or x0 >= x1:
            continue
        dy = np.arange(y0, y1, dtype=np.float32)[:, np.newaxis] - glands.y[index]
        dx = np.arange(x0, x1, dtype=np.float32)[np.newaxis] - glands.x[index]
        angle = np.arctan2(dy, dx)
        share = np.hypot(dy, dx) / glands.outline(int(index), angle)
        cut = (slice(y0 - top, y1 - top), slice(x0, x1))
        texture = eosin[cut]
        soft = np.float32(9 / glands.radius[index])
        cells = np.clip((1 - share) / soft, 0, 1)  # 1 inside the gland's outline
        ragged = glands.lumen[index] + 0.02 * np.sin(angle * 17 + 4 * np.sin(angle * 3 + index))
        lumen = np.clip((ragged - share) / (0.6 * soft), 0, 1)
        membrane = np.exp(-(((share - 1.03) / (0.5 * soft)) ** 2))
        apical = np.clip(1.6 - 1.6 * share, 0, 1)  # mucin pales the cells towards the lumen
        cytoplasm = 0.10 + 0.42 * texture + 0.06 * (1 - apical)
        eosin[cut] = (texture * (1 - cells) + cytoplasm * cells + 0.10 * membrane) * (1 - 0.97 * lumen)
        body = haematoxylin[cut] * (1 - cells) + (0.09 + 0.13 * (1 - apical) + 0.1 * texture) * cells
        haematoxylin[cut] = body * (1 - 0.97 * lumen)


def _draw_nuclei(scene: Scene, haematoxylin: Plane, eosin: Plane, top: int) -> None:
    """Stamp every nucleus that touches the arrays into both stains, in place."""
    nuclei, half = scene.nuclei, STAMP // 2
    rows, width = haematoxylin.shape
    first, last = np.searchsorted(nuclei.y, [top - half, top + rows + half])
    for x, y, index, strength in zip(
        nuclei.x[first:last].tolist(),
        (nuclei.y[first:last] - top).tolist(),
        nuclei.stamp[first:last].tolist(),
        nuclei.strength[first:last].tolist(),
        strict=True,
    ):
        y0, y1 = max(0, y - half), min(rows, y + half)
        x0, x1 = max(0, x - half), min(width, x + half)
        if y0 >= y1 or x0 >= x1:
            continue
        row_slice, column_slice = slice(y0 - y + half, y1 - y + half), slice(x0 - x + half, x1 - x + half)
        body, chromatin = scene.stamps[index, :, row_slice, column_slice]
        part = haematoxylin[y0:y1, x0:x1]
        np.maximum(part, chromatin * strength, out=part)
        eosin[y0:y1, x0:x1] *= 1 - 0.45 * body


def _pen(scene: Scene, y: Plane) -> Plane:
    """A felt-tip arc around a corner of the section: (len(y), width)."""
    x = np.arange(scene.width, dtype=np.float32)
    size = min(scene.width, scene.height)
    radius = np.hypot(y[:, np.newaxis] - 0.16 * scene.height, x[np.newaxis] - 0.84 * scene.width)
    thickness = max(3.0, size / 70)
    edge = thickness * (1 + 0.03 * scene.fine[0].rows(y, scene.width)) - np.abs(radius - 0.13 * size)
    return np.asarray(np.clip(edge / 6, 0, 1) * (0.85 + 0.03 * scene.fine[1].rows(y, scene.width)), np.float32)


def _profile(table: Plane, phase: Plane) -> Plane:
    """A periodic random curve through `table`, at the given phases."""
    line = np.floor(phase)
    share = phase - line
    index = line.astype(np.int32) & (len(table) - 1)
    low = table[index]
    return np.asarray(low + (table[(index + 1) & (len(table) - 1)] - low) * share, np.float32)


def _blurred(plane: Plane) -> Plane:
    """The blur of the optics: 1 4 6 4 1 in both directions. It consumes the rows of the halo."""
    down = (plane[:-4] + plane[4:] + 4 * (plane[1:-3] + plane[3:-1]) + 6 * plane[2:-2]) / 16
    wide = np.pad(down, ((0, 0), (2, 2)), mode="edge")
    across = wide[:, :-4] + wide[:, 4:] + 4 * (wide[:, 1:-3] + wide[:, 3:-1]) + 6 * wide[:, 2:-2]
    return np.asarray(across / 16, np.float32)


def write_pyramidal_tiff(
    path: str | Path,
    image: Pixels,
    *,
    mpp: float | None = 0.5,
    tile: int = 256,
    compression: str = "jpeg",
    quality: int = 90,
    step: int = 4,
    smallest: int = 512,
) -> None:
    """Write pixels (H, W, 3) as a tiled TIFF that OpenSlide calls generic-tiff, with levels of 1/step, 1/step², … until
    the longer side is at most `smallest`. `mpp` is in microns per pixel. `quality` is JPEG's; other compressions use
    their defaults."""
    import tifffile  # only writing needs it

    jpeg = compression == "jpeg"
    with tifffile.TiffWriter(path, bigtiff=image.nbytes > 1 << 31) as writer:
        for index, level in enumerate(_reductions(image, step, smallest)):
            across = None if mpp is None else 1e4 / (mpp * image.shape[1] / level.shape[1])
            writer.write(
                level,
                tile=(tile, tile),
                photometric="rgb",  # what the pixels are; JPEG turns them into YCbCr itself
                compression=compression,
                compressionargs={"level": quality} if jpeg else None,
                resolution=None if across is None else (across, across),
                resolutionunit=None if across is None else "CENTIMETER",
                subfiletype=1 if index else 0,
                metadata=None,
            )


def _reductions(image: Pixels, step: int, smallest: int) -> Iterator[Pixels]:
    """The image, then ever smaller means of it."""
    yield image
    while max(image.shape[:2]) > smallest:
        image = box_mean(image, step)
        yield image
