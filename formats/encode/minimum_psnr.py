"""`--min-psnr`: every chunk of the finished slide decodes to at least so many dB.

The pixels of a chunk depend on its own latents and on a halo of its neighbours'. So a level is raised in rounds, after
all of its shards are written and every chunk has been decoded and measured:

    search    for each chunk below the floor, the lowest quality that lifts it while its neighbours stay as they are;
              where none does, the chunk will be stored losslessly, and its latents at the level's own quality, which
              its neighbours need
    note      the round's changes go into the journal, all together
    change    the shards that they touch are written anew, one by one
    measure   the changed chunks and their neighbours; no other pixel can have changed

until no chunk is below. A chunk's quality only ever rises. After MOST_ROUNDS the chunks that are still below are stored
losslessly with the latents that they have, so that nothing changes around them and this round is the last.

The bytes of a chunk follow from the source and its quality alone, and a round from what the rounds before it have made.
So an encode that is stopped anywhere and resumed gives the same container.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from histocodec.codec.quantise import Quantiser
from histocodec.codec.window import Window, read_window
from histocodec.fidelity import squared_error
from histocodec.formats.container.states import CODED, LOSSLESS
from histocodec.formats.decode.cache import Cache
from histocodec.formats.decode.chunks import ChunkReader
from histocodec.formats.decode.fidelity import CACHE_BYTES, Floor, LevelFidelity
from histocodec.formats.encode.partial_container import PartialContainer, StoredChunk
from histocodec.formats.encode.plan import Plan
from histocodec.formats.encode.progress import Clock
from histocodec.formats.encode.records import Change, Round
from histocodec.geometry import ChunkKey, ShardKey
from histocodec.models.config import QUALITIES
from histocodec.threads import Workers

MOST_ROUNDS = 8  # two or three are usual: a neighbour's rise hardly ever lowers a chunk by more than the spare
SEARCH_TRIES = 8  # times that a search analyses or decodes a chunk, about; for the progress alone

Measure = Callable[[Sequence[ChunkKey], LevelFidelity], LevelFidelity]  # these chunks anew, the others as before


@dataclass(frozen=True)
class MinimumPsnr:
    """Raises the chunks of a partial container to a floor, from the source and with the quantiser of its plan."""

    floor: Floor
    plan: Plan
    quantiser: Quantiser
    container: PartialContainer
    workers: Workers
    clock: Clock

    def restore(self, level: int) -> None:
        """Makes the changes that an interrupted run has noted and not made.

        Shards that this run encoded anew start from the plan's quality again. Lossless pixels, of which the journal has
        no digests, are always written again.
        """
        noted = [change for made in self.container.journal.rounds if made.level == level for change in made.changes]
        latest = {change.key: change for change in noted}
        maps = self.container.maps(level)
        missing = []
        for key, change in latest.items():
            stored = maps.tiles[key.row, key.column], maps.quality[key.row, key.column]
            if change.state == LOSSLESS or stored != (change.state, change.quality):
                missing.append(change)
        self._make(missing)

    def enforce(self, fidelity: LevelFidelity, measure: Measure) -> LevelFidelity:
        """Changes chunks of the level that was measured, whose maps are written, until every chunk holds the floor.
        Returns what was measured last."""
        while below := fidelity.below(self.floor):
            rounds = sum(made.level == fidelity.level for made in self.container.journal.rounds)
            changes = self._given_up(below) if rounds >= MOST_ROUNDS else self._searched(below)
            self.container.journal.begin(Round(fidelity.level, changes))
            self._make(changes)
            affected = self._affected(below, fidelity)
            self.clock.extend(self._pixels(affected))
            fidelity = measure(affected, fidelity)
        return fidelity

    def _given_up(self, below: Sequence[ChunkKey]) -> tuple[Change, ...]:
        quality = self.container.maps(below[0].level).quality
        return tuple(Change(key, LOSSLESS, int(quality[key.row, key.column])) for key in below)

    def _searched(self, below: Sequence[ChunkKey]) -> tuple[Change, ...]:
        reader = ChunkReader(self.container, self.quantiser.weights, self.workers, cache=Cache(CACHE_BYTES // 2))
        self.clock.extend(SEARCH_TRIES * self._pixels(below))
        before = self.container.maps(below[0].level).quality

        def search(key: ChunkKey) -> Change:
            quality = self._lowest(key, int(before[key.row, key.column]), reader)
            if quality is None:
                return Change(key, LOSSLESS, self.plan.quality)
            return Change(key, CODED, quality)

        changes = []
        for change in self.workers.map(search, below):
            changes.append(change)
            self.clock.add("raise", SEARCH_TRIES * self._pixels([change.key]))
        return tuple(changes)

    def _lowest(self, key: ChunkKey, low: int, reader: ChunkReader) -> int | None:
        """The lowest quality above `low` at which the chunk holds the floor, found by bisection and tried; None where
        it does not at the highest."""
        latents, margin = reader.chunk_window(key)  # (C, h, w), gains undone
        window = self._window(key)
        height, width, _ = window.pixels.shape
        bottom, right = latents.shape[1] - margin.bottom, latents.shape[2] - margin.right
        chunk = latents[:, margin.top : bottom, margin.left : right]  # a view, which every try fills anew
        most, high = self.floor.mean_squared_error * window.pixels.size, QUALITIES - 1

        def holds(quality: int, quantiser: Quantiser) -> bool:
            integers = quantiser.latents(window, quality, self.plan.dtype)[window.inner]
            np.multiply(integers, quantiser.weights.inverse_gain(quality)[:, None, None], out=chunk)
            decoded = quantiser.transform.synthesise([latents], margin, reader.stats.channels)[0]
            return squared_error(decoded[:height, :width], window.pixels) <= most

        if low == high or not holds(high, self.quantiser):
            return None  # at once, as for noise, which no quality holds
        below, rounding = low, self.quantiser.without_search()
        while high - below > 1:
            middle = (below + high) // 2
            below, high = (below, middle) if holds(middle, rounding) else (middle, high)
        if not self.quantiser.effort:
            return high
        # The latent search changes the error little, so the quality that it needs is sought from there.
        while not holds(high, self.quantiser):
            high += 1  # to the highest, which holds
        while high - low > 1 and holds(high - 1, self.quantiser):
            high -= 1
        return high

    def _make(self, changes: Sequence[Change]) -> None:
        """Writes the shards in which something changes, and the pixels of what becomes lossless."""

        def shard_of(change: Change) -> ShardKey:
            return change.key.shard(self.container.attributes.shard_side(change.key.level))

        ordered = sorted(changes, key=lambda change: (shard_of(change), change.key))
        stored = self.workers.map(self._stored, ordered)
        for shard, group in groupby(ordered, key=shard_of):
            self.container.change_shard(shard, {change.key: next(stored) for change in group})

    def _stored(self, change: Change) -> StoredChunk:
        key = change.key
        window = self._window(key)
        if change.state == LOSSLESS:
            self.container.write_lossless(key, window.pixels)
        latents = self.quantiser.chunk(window, change.quality, self.container.attributes.chunk, self.plan.dtype)
        return StoredChunk.of(change.state, self.quantiser.coded(latents, change.quality), latents)

    def _affected(self, changed: Sequence[ChunkKey], fidelity: LevelFidelity) -> list[ChunkKey]:
        """These chunks and their neighbours, if they are measured: a halo reaches no farther than one chunk."""
        rows, columns = fidelity.squared_error.shape
        near = {
            ChunkKey(key.level, row, column)
            for key in changed
            for row in range(max(0, key.row - 1), min(rows, key.row + 2))
            for column in range(max(0, key.column - 1), min(columns, key.column + 2))
        }
        return sorted(key for key in near if not np.isnan(fidelity.squared_error[key.row, key.column]))

    def _window(self, key: ChunkKey) -> Window:
        """A chunk of the source, read and analysed."""
        scope, level = self.plan.scope, self.plan.scope.source_levels[key.level]
        return read_window(scope.slide, level, scope.region(key), self.quantiser.transform, self.plan.stats)

    def _pixels(self, keys: Sequence[ChunkKey]) -> int:
        return sum(self.plan.scope.region(key).area for key in keys)
