"""The maps of a level: what is known of every chunk without reading its shard.

    map           bytes  a value for each chunk
    state         1      BACKGROUND, CODED or LOSSLESS
    quality       1      0 to 100; 0 for background
    size          4      bytes of the chunk in its shard, CRC included; 0 for background. Chunks lie in the shard in
                         C order without gaps, so that the sizes give the offsets and nobody needs the shard's index
    check         4      `check.latents_check` of the chunk's latents and its quality; 0 for background
    psnr          2      hundredths of a decibel; EXACT where nothing was lost, UNMEASURED for background
    block_error   2      hundredths of a grey value; UNMEASURED for background

The feature "lossless" adds `lossless_size` and `lossless_check`, 4 bytes each: the same for the shards of lossless
pixels. Every byte of a value is a plane of its own, the lowest first, since like bytes pack better together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError
from histocodec.formats.container.shard import CRC_BYTES, MAX_CHUNK_BYTES
from histocodec.formats.container.states import BACKGROUND, LOSSLESS
from histocodec.models.config import QUALITIES

Widths = tuple[tuple[str, int], ...]  # names of maps, and their bytes

MAPS: Widths = (("state", 1), ("quality", 1), ("size", 4), ("check", 4), ("psnr", 2), ("block_error", 2))
LOSSLESS_MAPS: Widths = (("lossless_size", 4), ("lossless_check", 4))
UNMEASURED = 2**16 - 1
EXACT = 2**16 - 2
STEPS = 100  # of psnr and block_error in a decibel and a grey value
MOST_DECIBELS = 200
MOST_ERROR = 255

Plane = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class LevelMaps:
    """The maps of one level, (chunk rows, chunk columns) each, as the module's docstring lists them; `psnr` in dB and
    `block_error` in grey values, NaN for background. The last two are zero where nothing is stored losslessly."""

    state: NDArray[np.uint8]
    quality: NDArray[np.uint8]
    size: Plane
    check: Plane
    psnr: NDArray[np.float32]
    block_error: NDArray[np.float32]
    lossless_size: Plane
    lossless_check: Plane

    def values(self, *, lossless: bool) -> NDArray[np.uint8]:
        """The maps as they are stored, (bytes, rows, columns) uint8: those of MAPS, then with `lossless` those of
        LOSSLESS_MAPS."""
        steps: Mapping[str, NDArray[np.generic]] = {
            "state": self.state,
            "quality": self.quality,
            "size": self.size,
            "check": self.check,
            "psnr": _steps(self.psnr),
            "block_error": _steps(self.block_error),
            "lossless_size": self.lossless_size,
            "lossless_check": self.lossless_check,
        }
        maps = MAPS + LOSSLESS_MAPS if lossless else MAPS
        planes = [steps[name].astype(np.uint64) >> np.uint64(8 * byte) for name, width in maps for byte in range(width)]
        return np.stack([plane.astype(np.uint8) for plane in planes])

    @classmethod
    def from_values(cls, values: NDArray[np.uint8], more: Widths, where: str) -> "LevelMaps":
        """The inverse of `values`. `more` names the maps after those of MAPS; unknown ones are ignored. Raises
        FormatError, which begins with `where`, for values that are not allowed or contradict each other."""
        nothing = np.zeros(values.shape[1:], np.uint32)
        maps: dict[str, Plane] = {name: nothing for name, _ in LOSSLESS_MAPS}
        start = 0
        for name, width in (*MAPS, *more):
            if (name, width) in (*MAPS, *LOSSLESS_MAPS):
                maps[name] = _joined(values[start : start + width])
            start += width
        _check_maps(maps, where)
        return cls(
            state=maps["state"].astype(np.uint8),
            quality=maps["quality"].astype(np.uint8),
            size=maps["size"],
            check=maps["check"],
            psnr=_from_steps(maps["psnr"]),
            block_error=_from_steps(maps["block_error"]),
            lossless_size=maps["lossless_size"],
            lossless_check=maps["lossless_check"],
        )


def planes_of(more: Widths) -> int:
    """The number of planes of maps that have `more` than MAPS."""
    return sum(width for _, width in (*MAPS, *more))


def _joined(planes: NDArray[np.uint8]) -> Plane:
    value = np.zeros(planes.shape[1:], np.uint32)
    for byte, plane in enumerate(planes):
        value |= plane.astype(np.uint32) << np.uint32(8 * byte)
    return value


def _check_maps(maps: Mapping[str, Plane], where: str) -> None:
    state, background = maps["state"], maps["state"] == BACKGROUND
    lossless, most = state == LOSSLESS, MAX_CHUNK_BYTES + CRC_BYTES

    def sized(size: Plane, present: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.asarray(np.where(present, (size > CRC_BYTES) & (size <= most), size == 0))

    def measured(values: Plane, limit: int, special: int) -> NDArray[np.bool_]:
        allowed = (values <= limit * STEPS) | (values == special)
        return np.asarray(np.where(background, values == UNMEASURED, allowed))

    sound = {
        "state": state <= LOSSLESS,
        "quality": (maps["quality"] < QUALITIES) & ~(background & (maps["quality"] != 0)),
        "size": sized(maps["size"], ~background),
        "check": ~(background & (maps["check"] != 0)),
        "psnr": measured(maps["psnr"], MOST_DECIBELS, EXACT),
        "block_error": measured(maps["block_error"], MOST_ERROR, 0),
        "lossless_size": sized(maps["lossless_size"], lossless),
        "lossless_check": lossless | (maps["lossless_check"] == 0),
    }
    for name, right in sound.items():
        for row, column in np.argwhere(~right)[:1]:
            raise FormatError(
                f"{where}: {name} of chunk ({row}, {column}) is {maps[name][row, column]}, which is not allowed for "
                f"a chunk of state {state[row, column]}"
            )


def _steps(values: NDArray[np.float32]) -> Plane:
    """Decibels or grey values as they are stored."""
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    steps = np.rint(finite * STEPS).astype(np.uint32)
    return np.where(np.isnan(values), np.uint32(UNMEASURED), np.where(np.isinf(values), np.uint32(EXACT), steps))


def _from_steps(steps: Plane) -> NDArray[np.float32]:
    """The inverse of `_steps`."""
    values = (steps / np.float64(STEPS)).astype(np.float32)
    return np.where(steps == UNMEASURED, np.float32(np.nan), np.where(steps == EXACT, np.float32(np.inf), values))
