"""`--min-psnr`: every chunk of the finished slide decodes to at least so many dB, its neighbours being as they are.

A chunk's pixels depend on its own latents and on a halo of its neighbours', so a level is held in rounds, after all
of its shards are written and every chunk has been decoded and measured:

    search    each chunk below the floor, alone: the lowest quality that lifts it, its neighbours as they are now;
              where none does, it will be stored losslessly, with the level's own quality for its neighbours' sake
    note      the round's changes go into the journal, all together
    change    the shards that they touch are written anew, one by one
    measure   what changed, and its neighbours: nothing else can have

until none is below. A chunk only ever rises, and after MOST_ROUNDS those that are still below are stored losslessly
with the latents that they have, so that nothing around them changes any more: this round is the last.

The bytes of a chunk follow from the source and its quality alone, and a round from what the rounds before it have
made. So an encode that is stopped anywhere goes on to the same container.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

from histocodec.codec.quantise import Quantiser
from histocodec.codec.window import Window, read_window
from histocodec.fidelity import squared_error
from histocodec.formats.container import write as files
from histocodec.formats.container.layout import CODED, LOSSLESS
from histocodec.formats.container.read import Container
from histocodec.formats.decode.chunks import ChunkReader
from histocodec.formats.decode.fidelity import CACHE_BYTES, Floor, LevelFidelity
from histocodec.formats.encode.journal import Change, Round
from histocodec.formats.encode.partial import Growing, StoredChunk
from histocodec.geometry import ChunkKey, Region
from histocodec.models.config import QUALITIES
from histocodec.slide import Slide
from histocodec.threads import Workers

MOST_ROUNDS = 8  # two or three are usual: a neighbour's rise hardly ever lowers a chunk by more than the spare
SEARCHED = 8  # times that a chunk is analysed or decoded in a search; for the progress alone

Measure = Callable[[Sequence[ChunkKey], LevelFidelity], LevelFidelity]  # these chunks anew, the others as before


@dataclass(frozen=True)
class Guarantee:
    """Holds the levels of a growing container to a floor. `source_levels` are those of `slide`, by the container's;
    `extend` is told of pixels to do and `done` of pixels done."""

    floor: Floor
    growing: Growing
    slide: Slide
    source_levels: Sequence[int]
    quantiser: Quantiser
    dtype: np.dtype[np.signedinteger]
    quality: int
    workers: Workers
    extend: Callable[[int], None]
    done: Callable[[int], None]

    def restore(self, level: int) -> None:
        """Makes what an interrupted run has noted and not made. Shards that are encoded anew begin from the start,
        and lossless pixels, of which the journal has no digests, are written again."""
        noted = [change for one in self.growing.journal.rounds if one.level == level for change in one.changes]
        wanted = {(change.row, change.column): change for change in noted}  # the last of each counts
        maps = self.growing.maps(level)
        missing = [
            change
            for place, change in wanted.items()
            if change.tile == LOSSLESS or (maps.tiles[place], maps.quality[place]) != (change.tile, change.quality)
        ]
        self._make(level, missing)

    def hold(self, level: int, fidelity: LevelFidelity, measure: Measure) -> LevelFidelity:
        """Changes chunks of a level whose maps are written until each holds the floor; what was measured at last."""
        while failing := fidelity.below(self.floor):
            count = sum(one.level == level for one in self.growing.journal.rounds)
            changes = self._given_up(failing) if count >= MOST_ROUNDS else self._searched(failing)
            self.growing.journal.begin(Round(level, changes))
            self._make(level, changes)
            self.growing.write_maps(level)
            again = self._affected(failing, fidelity)
            self.extend(sum(self._region(key).area for key in again))
            fidelity = measure(again, fidelity)
        return fidelity

    def _given_up(self, failing: Sequence[ChunkKey]) -> tuple[Change, ...]:
        quality = self.growing.maps(failing[0].level).quality
        return tuple(Change(key.row, key.column, LOSSLESS, int(quality[key.row, key.column])) for key in failing)

    def _searched(self, failing: Sequence[ChunkKey]) -> tuple[Change, ...]:
        attributes = self.growing.attributes
        container = Container(self.growing.root, attributes)
        reader = ChunkReader(container, self.quantiser.weights, self.workers, cache_bytes=CACHE_BYTES // 2)
        self.extend(SEARCHED * sum(self._region(key).area for key in failing))
        before = self.growing.maps(failing[0].level).quality

        def search(key: ChunkKey) -> Change:
            quality = self._lowest(key, int(before[key.row, key.column]), reader)
            if quality is None:
                return Change(key.row, key.column, LOSSLESS, self.quality)
            return Change(key.row, key.column, CODED, quality)

        changes = []
        for key, change in zip(failing, self.workers.map(search, failing), strict=True):
            changes.append(change)
            self.done(SEARCHED * self._region(key).area)
        return tuple(changes)

    def _lowest(self, key: ChunkKey, low: int, reader: ChunkReader) -> int | None:
        """The lowest quality above `low` with which the chunk holds the floor, found by bisection and tried; None
        where the highest does not."""
        around, margin = reader.chunk_window(key)
        part = self._window(key)
        height, width, _ = part.pixels.shape
        rows, columns = around.shape[1] - margin.bottom, around.shape[2] - margin.right
        own = around[:, margin.top : rows, margin.left : columns]
        most, high = self.floor.mean_squared_error * part.pixels.size, QUALITIES - 1

        def holds(quality: int, quantiser: Quantiser) -> bool:
            latents = quantiser.window(part, quality, self.dtype)[part.inner]
            np.multiply(latents, self.quantiser.weights.inverse_gain(quality)[:, None, None], out=own)
            decoded = self.quantiser.transform.synthesise([around], margin, reader.stats.channels)[0]
            return squared_error(decoded[:height, :width], part.pixels) <= most

        if low == high or not holds(high, self.quantiser):
            return None  # at once, as for noise, which no quality holds
        below, rounding = low, self.quantiser.rounding()
        while high - below > 1:
            middle = (below + high) // 2
            below, high = (below, middle) if holds(middle, rounding) else (middle, high)
        if not self.quantiser.effort:
            return high
        # Effort changes little, so that what it makes of a quality is sought from there.
        while not holds(high, self.quantiser):
            high += 1  # to the highest, which holds
        while high - low > 1 and holds(high - 1, self.quantiser):
            high -= 1
        return high

    def _make(self, level: int, changes: Sequence[Change]) -> None:
        """Writes the shards in which something changes, and the pixels of what becomes lossless."""
        located = sorted((self.growing.shard_of((c.row, c.column)), c.row, c.column, c) for c in changes)
        made = self.workers.map(lambda change: self._stored(level, change), [item[-1] for item in located])
        for shard, group in groupby(located, key=itemgetter(0)):
            chunks = {(row, column): next(made) for _, row, column, _ in group}
            self.growing.change_shard(level, shard, chunks)

    def _stored(self, level: int, change: Change) -> StoredChunk:
        key, side = ChunkKey(level, change.row, change.column), self.growing.attributes.chunk
        part = self._window(key)
        if change.tile == LOSSLESS:
            files.write_lossless(self.growing.root, self.growing.attributes, key, part.pixels)
        return StoredChunk(change.tile, self.quantiser.coded(part, change.quality, side, self.dtype))

    def _affected(self, changed: Sequence[ChunkKey], fidelity: LevelFidelity) -> list[ChunkKey]:
        """These and their neighbours, as far as they are measured: a halo reaches no farther than one chunk."""
        rows, columns = fidelity.squared_error.shape
        near = {
            ChunkKey(key.level, row, column)
            for key in changed
            for row in range(max(0, key.row - 1), min(rows, key.row + 2))
            for column in range(max(0, key.column - 1), min(columns, key.column + 2))
        }
        return sorted(key for key in near if not np.isnan(fidelity.squared_error[key.row, key.column]))

    def _window(self, key: ChunkKey) -> Window:
        transform, stats = self.quantiser.transform, self.quantiser.stats
        return read_window(self.slide, self.source_levels[key.level], self._region(key), transform, stats)

    def _region(self, key: ChunkKey) -> Region:
        return self.growing.attributes.chunk_region(key)
