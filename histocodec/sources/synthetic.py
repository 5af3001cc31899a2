"""An invented H&E section, for demonstrations and tests: no patient, no licence, any size, any seed.

It is drawn as the optical densities of two stains, which the Beer–Lambert law turns into light. This happens band by
band, so that a large slide needs little more memory than its pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import UsageError
from histocodec.slide import Pixels
from histocodec.sources.pyramid import box_mean

Plane = NDArray[np.float32]

# Optical density in red, green and blue of one unit of stain.
HAEMATOXYLIN = (0.74, 0.72, 0.36)
EOSIN = (0.08, 0.78, 0.27)
PEN = (1.30, 0.45, 0.95)  # a green marker
BACKGROUND = (243.0, 241.0, 244.0)  # bare glass

BAND = 256  # rows drawn at once
HALO = 2  # rows that the blur needs above and below a band
STAMPS = 384  # different nuclei; each is used many times, at other strengths
STAMP = 32  # pixels a side; at 0.5 microns per pixel a nucleus is 8 to 24 pixels long
PERIOD = 260  # pixels between glands
SENSOR_NOISE = 1.6  # grey values


@dataclass(frozen=True, eq=False)
class _Noise:
    """Smooth noise of mean 0 and standard deviation about 1, which any band of rows can be computed of."""

    grid: Plane
    cell: float

    @staticmethod
    def create(rng: np.random.Generator, height: int, width: int, cell: float) -> "_Noise":
        shape = (int((height + 4) / cell) + 3, int((width + 4) / cell) + 3)
        # Interpolation averages neighbours and so takes away a third of the deviation.
        return _Noise(rng.standard_normal(shape, dtype=np.float32) * np.float32(1.5), cell)

    def rows(self, y: "Plane", width: int) -> Plane:
        """Values at the given row coordinates and all columns: (len(y), width)."""
        top, down = _steps(y, self.cell)
        left, right = _steps(np.arange(width, dtype=np.float32), self.cell)
        lines = self.grid[top] + (self.grid[top + 1] - self.grid[top]) * down[:, np.newaxis]
        near, far = lines[:, left], lines[:, left + 1]
        far -= near
        far *= right
        far += near
        return np.asarray(far, np.float32)

    def at(self, y: Plane, x: Plane) -> Plane:
        """Values at scattered points."""
        top, down = _steps(y, self.cell)
        left, right = _steps(x, self.cell)
        upper = self.grid[top, left] * (1 - right) + self.grid[top, left + 1] * right
        lower = self.grid[top + 1, left] * (1 - right) + self.grid[top + 1, left + 1] * right
        return np.asarray(upper * (1 - down) + lower * down, np.float32)


@dataclass(frozen=True)
class _Glands:
    """Round structures: a lumen, a ring of tall cells, nuclei at its base."""

    x: Plane
    y: Plane
    radius: Plane
    lumen: Plane  # its radius, as a share of the gland's
    waves: Plane  # (n, 4) phases of the outline's harmonics
    depths: Plane  # (n, 4) and how deep they are

    def outline(self, index: int, angle: Plane) -> Plane:
        """The gland's radius in a direction."""
        radius: Plane = np.ones_like(angle)
        for order in range(4):
            radius += self.depths[index, order] * np.cos((order + 2) * angle + self.waves[index, order])
        return np.asarray(self.radius[index] * radius, np.float32)


@dataclass(frozen=True)
class _Nuclei:
    """Where nuclei lie, in order of y, which stamp each has, and how strongly it is stained."""

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    stamp: NDArray[np.int64]
    strength: Plane


class _Scene:
    """Everything that is decided before drawing starts, and that all bands share."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        self.width, self.height = width, height
        rng = np.random.default_rng([seed, 0])
        size = min(width, height)

        def noise(cell: float) -> _Noise:
            return _Noise.create(rng, height, width, cell)

        self.coast = (noise(max(48.0, size / 4)), noise(max(24.0, size / 11)), noise(34.0), noise(11.0))
        self.field = (noise(420.0), noise(150.0), noise(48.0))  # fibres run along its level lines
        # A main direction; without it the level lines would close into whorls everywhere.
        course = rng.uniform(0, 2 * np.pi)
        self.drift = (float(np.cos(course)) / 60, float(np.sin(course)) / 60)
        self.fibre_profile = rng.standard_normal(4096, dtype=np.float32)
        self.fine = (noise(26.0), noise(9.0), noise(3.1))
        self.stain = noise(900.0)
        self.inflamed = noise(260.0)
        self.glands = self._place_glands(rng)
        self.stamps = _nucleus_stamps(rng)
        self.nuclei = self._place_nuclei(rng)

    def inside(self, y: Plane, x: Plane) -> Plane:
        """How deep in the tissue scattered points lie; below 0 is background."""
        large, medium, _, _ = self.coast
        return np.asarray(self._shore(y, x) + 0.34 * large.at(y, x) + 0.16 * medium.at(y, x), np.float32)

    def _shore(self, y: Plane, x: Plane) -> Plane:
        across, down = x / self.width * 2 - 1, y / self.height * 2 - 1
        return (0.72 - (across**2 + down**2) * 0.95).astype(np.float32)

    def tissue(self, y: Plane) -> Plane:
        """From 0 on background to 1 in tissue, for whole rows, with a ragged edge a few pixels wide."""
        x = np.arange(self.width, dtype=np.float32)
        depth = self._shore(y[:, np.newaxis], x[np.newaxis])
        for weight, noise in zip((0.34, 0.16, 0.02, 0.008), self.coast, strict=True):
            depth += weight * noise.rows(y, self.width)
        return np.asarray(np.clip(depth * 40, 0, 1), np.float32)

    def potential(self, y: Plane, x: Plane) -> Plane:
        """The field at scattered points; fibres run along its level lines."""
        a, b, c = self.field
        bends = 3.2 * a.at(y, x) + 1.1 * b.at(y, x) + 0.16 * c.at(y, x)
        return np.asarray(bends + x * self.drift[0] + y * self.drift[1], np.float32)

    def _place_glands(self, rng: np.random.Generator) -> _Glands:
        rows, columns = self.height // PERIOD + 2, self.width // PERIOD + 2
        row, column = np.mgrid[0:rows, 0:columns].reshape(2, -1)
        x = ((column + 0.5 * (row % 2) + rng.uniform(-0.33, 0.33, row.size) - 0.25) * PERIOD).astype(np.float32)
        y = ((row + rng.uniform(-0.33, 0.33, row.size)) * PERIOD).astype(np.float32)
        crowded = _Noise.create(rng, self.height, self.width, PERIOD * 3.5)
        limit_y, limit_x = np.clip(y, 0, self.height - 1), np.clip(x, 0, self.width - 1)
        in_tissue = (self.inside(limit_y, limit_x) > 0.16) & (crowded.at(limit_y, limit_x) > -0.45)
        x, y = x[in_tissue], y[in_tissue]
        radius = rng.uniform(75, 165, x.size).astype(np.float32)
        separate = np.ones(x.size, bool)
        for index in range(x.size):  # of two glands that would overlap, the first stays
            distance = np.hypot(x[:index] - x[index], y[:index] - y[index])
            separate[index] = not (separate[:index] & (distance < 1.05 * (radius[:index] + radius[index]))).any()
        x, y, radius = x[separate], y[separate], radius[separate]
        n = x.size
        return _Glands(
            x=x,
            y=y,
            radius=radius,
            lumen=rng.uniform(0.15, 0.62, n).astype(np.float32),
            waves=rng.uniform(0, 2 * np.pi, (n, 4)).astype(np.float32),
            depths=(rng.uniform(0, 1, (n, 4)) * np.array([0.16, 0.09, 0.05, 0.03])).astype(np.float32),
        )

    def _place_nuclei(self, rng: np.random.Generator) -> _Nuclei:
        """Epithelial ones along the glands' bases, lymphocytes in clusters, spindles along the fibres."""
        parts = [self._gland_nuclei(rng, index) for index in range(len(self.glands.x))]
        parts.append(self._scattered_nuclei(rng))
        x, y, stamp, strength = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(y, kind="stable")
        return _Nuclei(
            x[order].astype(np.int64),
            y[order].astype(np.int64),
            stamp[order].astype(np.int64),
            strength[order].astype(np.float32),
        )

    def _gland_nuclei(self, rng: np.random.Generator, index: int) -> tuple[Plane, ...]:
        glands = self.glands
        count = int(2 * np.pi * glands.radius[index] * 0.8 / 13)
        rows = 2 if glands.lumen[index] < 0.4 else 1  # pseudostratified where the cells are tall
        angle = (np.arange(count * rows) / count * 2 * np.pi).astype(np.float32)
        angle += rng.normal(0, 0.35 * 2 * np.pi / count, angle.size).astype(np.float32)
        share = np.repeat(np.array([0.84, 0.66], np.float32)[:rows], count)
        share += rng.normal(0, 0.035, angle.size).astype(np.float32)
        radius = glands.outline(index, angle) * share
        stamp = _stamp_index(rng, 0, angle)
        return (
            glands.x[index] + radius * np.cos(angle),
            glands.y[index] + radius * np.sin(angle),
            stamp,
            np.asarray(rng.uniform(0.75, 1.15, angle.size), np.float32),
        )

    def _scattered_nuclei(self, rng: np.random.Generator) -> tuple[Plane, ...]:
        count = int(self.width * self.height / 400)
        x = rng.uniform(0, self.width - 1, count).astype(np.float32)
        y = np.sort(rng.uniform(0, self.height - 1, count).astype(np.float32))
        heat = self.inflamed.at(y, x)
        lymphocyte = heat > 0.9
        placed = rng.uniform(0, 1, count) < np.where(lymphocyte, np.clip(heat - 0.8, 0.15, 0.9), 0.19)
        placed &= self.inside(y, x) > 0.03
        x, y, lymphocyte = x[placed], y[placed], lymphocyte[placed]
        outside = np.ones(x.size, bool)
        for index in range(len(self.glands.x)):  # stroma stops where a gland begins
            reach = 1.5 * self.glands.radius[index]
            near = slice(*np.searchsorted(y, [self.glands.y[index] - reach, self.glands.y[index] + reach]))
            dx, dy = x[near] - self.glands.x[index], y[near] - self.glands.y[index]
            outside[near] &= np.hypot(dx, dy) > 1.02 * self.glands.outline(index, np.arctan2(dy, dx))
        x, y, lymphocyte = x[outside], y[outside], lymphocyte[outside]
        # Along a level line means across the gradient.
        centre = self.potential(y, x)
        slope_x, slope_y = self.potential(y, x + 4) - centre, self.potential(y + 4, x) - centre
        angle = np.asarray(np.arctan2(slope_x, -slope_y) + rng.normal(0, 0.2, x.size), np.float32)
        stamp = np.where(lymphocyte, _stamp_index(rng, 2, angle), _stamp_index(rng, 1, angle))
        strength = rng.uniform(0.7, 1.1, x.size) + 0.25 * lymphocyte
        return x, y, np.asarray(stamp, np.float32), np.asarray(strength, np.float32)


def synthetic_slide(width: int, height: int, *, seed: int = 0, pen: bool = False) -> Pixels:
    """The pixels (height, width, 3) uint8 of an invented H&E section, as at 0.5 microns per pixel. The same arguments
    give the same pixels. `pen` adds a marker's arc, which no stain model explains. Raises UsageError for a size below
    1."""
    if width < 1 or height < 1:
        raise UsageError(f"a slide needs at least one pixel, found {width}x{height}")
    scene = _Scene(width, height, seed)
    image = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, BAND):
        rows = min(BAND, height - top)
        rng = np.random.default_rng([seed, 1, top])
        image[top : top + rows] = _band(scene, top, rows, rng, pen=pen)
    return image


def _band(scene: _Scene, top: int, rows: int, rng: np.random.Generator, *, pen: bool) -> Pixels:
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


def _stroma(scene: _Scene, y: Plane) -> tuple[Plane, Plane]:
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


def _draw_glands(scene: _Scene, haematoxylin: Plane, eosin: Plane, top: int) -> None:
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


def _draw_nuclei(scene: _Scene, haematoxylin: Plane, eosin: Plane, top: int) -> None:
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


def _nucleus_stamps(rng: np.random.Generator) -> Plane:
    """(STAMPS, 2, STAMP, STAMP): outline and chromatin of epithelial, spindle and round nuclei. A third of the stamps
    is of each kind, in order of the angle from 0 to pi."""
    y, x = np.mgrid[0:STAMP, 0:STAMP].astype(np.float32) - (STAMP - 1) / 2
    stamps = np.empty((STAMPS, 2, STAMP, STAMP), np.float32)
    third = STAMPS // 3
    longs = ((7.0, 11.0), (8.0, 13.0), (4.6, 6.2))
    ratios = ((0.55, 0.8), (0.22, 0.42), (0.85, 1.0))
    darkness = ((0.55, 0.85), (0.65, 0.95), (0.95, 1.2))
    for index in range(STAMPS):
        kind, angle = index // third, (index % third) / third * np.pi
        long = rng.uniform(*longs[kind])
        short = long * rng.uniform(*ratios[kind])
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        across = across + rng.normal(0, 0.012) * along**2  # a slight bend
        radius = np.hypot(along / long, across / short)
        body = np.clip((1 - radius) * short / 1.6 + 0.5, 0, 1)
        clumps = _Noise.create(rng, STAMP, STAMP, 3.0).rows(np.arange(STAMP, dtype=np.float32), STAMP)
        rim = np.exp(-(((radius - 0.88) / 0.16) ** 2))
        chromatin = rng.uniform(*darkness[kind]) * (0.82 + 0.17 * clumps + 0.22 * rim)
        stamps[index] = body, np.clip(chromatin, 0.25, 1.6) * body
    return stamps


def _stamp_index(rng: np.random.Generator, kind: int, angle: Plane) -> Plane:
    third = STAMPS // 3
    turn = np.mod(angle / np.pi, 1) * third + rng.uniform(-4, 4, angle.size)
    return np.asarray(kind * third + np.mod(turn.astype(np.int64), third), np.float32)


def _pen(scene: _Scene, y: Plane) -> Plane:
    """A felt-tip arc around a corner of the section: (len(y), width)."""
    x = np.arange(scene.width, dtype=np.float32)
    size = min(scene.width, scene.height)
    radius = np.hypot(y[:, np.newaxis] - 0.16 * scene.height, x[np.newaxis] - 0.84 * scene.width)
    thickness = max(3.0, size / 70)
    edge = thickness * (1 + 0.03 * scene.fine[0].rows(y, scene.width)) - np.abs(radius - 0.13 * size)
    return np.asarray(np.clip(edge / 6, 0, 1) * (0.85 + 0.03 * scene.fine[1].rows(y, scene.width)), np.float32)


def _steps(coordinates: Plane, cell: float) -> tuple[NDArray[np.int64], Plane]:
    """The grid line before each coordinate, and a smooth 0 … 1 from there to the next."""
    position = coordinates / np.float32(cell)
    line = np.floor(position)
    share = position - line
    return line.astype(np.int64), np.asarray(share * share * (3 - 2 * share), np.float32)


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
