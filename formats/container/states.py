"""The tile states: how a chunk is stored."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from histocodec.geometry import ChunkKey

BACKGROUND = 0  # absent on purpose: bare glass without tissue
CODED = 1  # as latents
LOSSLESS = 2  # as pixels, and as latents, since the windows of its neighbours need them

RUN = 4096  # chunks of a row that are looked at together: as keys, a level's chunks would take gigabytes


def chunks_where(level: int, condition: NDArray[np.bool_]) -> Iterator[ChunkKey]:
    """The chunks of a level for which `condition` (rows, columns) holds, row by row."""
    for row, states in enumerate(condition):
        for start in range(0, len(states), RUN):
            for column in np.flatnonzero(states[start : start + RUN]).tolist():
                yield ChunkKey(level, row, start + column)
