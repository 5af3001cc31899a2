"""The scene of an invented section: all that is decided before `synthetic` draws it, and that its bands share."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

STAMPS = 384  # different nuclei; each is used many times, at other strengths
STAMP = 32  # pixels a side; at 0.5 microns per pixel a nucleus is 8 to 24 pixels long
PERIOD = 260  # pixels between glands


@dataclass(frozen=True, eq=False)
class Noise:
    """Smooth noise of mean 0 and standard deviation about 1, which any band of rows can be computed of."""

    grid: Plane
    cell: float

    @staticmethod
    def create(rng: np.random.Generator, height: int, width: int, cell: float) -> "Noise":
        """Noise over a plane of this size that changes within about `cell` pixels."""
        shape = (int((height + 4) / cell) + 3, int((width + 4) / cell) + 3)
        # Interpolation averages neighbours and so takes away a third of the deviation.
        return Noise(rng.standard_normal(shape, dtype=np.float32) * np.float32(1.5), cell)

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
class Glands:
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
class Nuclei:
    """Where nuclei lie, in order of y, which stamp each has, and how strongly it is stained."""

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    stamp: NDArray[np.int64]
    strength: Plane


class Scene:
    """Where everything lies in a section of this size and seed: the tissue's outline, glands, fibres and nuclei."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        self.width, self.height = width, height
        rng = np.random.default_rng([seed, 0])
        size = min(width, height)

        def noise(cell: float) -> Noise:
            return Noise.create(rng, height, width, cell)

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

    def _place_glands(self, rng: np.random.Generator) -> Glands:
        rows, columns = self.height // PERIOD + 2, self.width // PERIOD + 2
        row, column = np.mgrid[0:rows, 0:columns].reshape(2, -1)
        x = ((column + 0.5 * (row % 2) + rng.uniform(-0.33, 0.33, row.size) - 0.25) * PERIOD).astype(np.float32)
        y = ((row + rng.uniform(-0.33, 0.33, row.size)) * PERIOD).astype(np.float32)
        crowded = Noise.create(rng, self.height, self.width, PERIOD * 3.5)
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
        return Glands(
            x=x,
            y=y,
            radius=radius,
            lumen=rng.uniform(0.15, 0.62, n).astype(np.float32),
            waves=rng.uniform(0, 2 * np.pi, (n, 4)).astype(np.float32),
            depths=(rng.uniform(0, 1, (n, 4)) * np.array([0.16, 0.09, 0.05, 0.03])).astype(np.float32),
        )

    def _place_nuclei(self, rng: np.random.Generator) -> Nuclei:
        """Epithelial ones along the glands' bases, lymphocytes in clusters, spindles along the fibres."""
        parts = [self._gland_nuclei(rng, index) for index in range(len(self.glands.x))]
        parts.append(self._scattered_nuclei(rng))
        x, y, stamp, strength = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(y, kind="stable")
        return Nuclei(
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
        clumps = Noise.create(rng, STAMP, STAMP, 3.0).rows(np.arange(STAMP, dtype=np.float32), STAMP)
        rim = np.exp(-(((radius - 0.88) / 0.16) ** 2))
        chromatin = rng.uniform(*darkness[kind]) * (0.82 + 0.17 * clumps + 0.22 * rim)
        stamps[index] = body, np.clip(chromatin, 0.25, 1.6) * body
    return stamps


def _stamp_index(rng: np.random.Generator, kind: int, angle: Plane) -> Plane:
    third = STAMPS // 3
    turn = np.mod(angle / np.pi, 1) * third + rng.uniform(-4, 4, angle.size)
    return np.asarray(kind * third + np.mod(turn.astype(np.int64), third), np.float32)


def _steps(coordinates: Plane, cell: float) -> tuple[NDArray[np.int64], Plane]:
    """The grid line before each coordinate, and a smooth 0 … 1 from there to the next."""
    position = coordinates / np.float32(cell)
    line = np.floor(position)
    share = position - line
    return line.astype(np.int64), np.asarray(share * share * (3 - 2 * share), np.float32)
