"""A container of version 2, read. What its attributes do not hold is read from the store when it is asked for, and held
to what the attributes say: by SHA-256, and chunks by the checks in the maps.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from histocodec.errors import FormatError, UsageError
from histocodec.formats.container.abstract_container import ChunkSource, Container
from histocodec.formats.container.abstract_store import Store
from histocodec.formats.container.arrays import Form, check_metadata, chunk_key, pack_values, unpack_values
from histocodec.formats.container.attributes import Attributes, Stats
from histocodec.formats.container.attributes_json import MAX_INLINE_VALUES, inflate
from histocodec.formats.container.layout import (
    DIGESTS,
    ICC,
    LATENTS,
    MAPS,
    MODEL,
    OVERVIEW,
    chunk_number,
    digests_form,
    has_lossless,
    latents_metadata,
    lossless_key,
    maps_form,
    shard_key,
    small_arrays,
)
from histocodec.formats.container.maps import LevelMaps
from histocodec.formats.container.shard import CRC_BYTES, IndexCache, ShardIndex, crc32c, index_bytes
from histocodec.geometry import ChunkKey
from histocodec.slide import Pixels

if TYPE_CHECKING:
    import zarr


class ContainerV2(Container):
    """A container of version 2 in a store, its attributes checked. Thread-safe. The maps of a level are read once.

    Methods raise FormatError where a file is missing, damaged, or not the one that was written there, and UsageError
    for a level that does not exist.
    """

    def __init__(self, store: Store, attributes: Attributes) -> None:
        self.store, self.attributes = store, attributes
        self._maps: dict[int, LevelMaps] = {}
        self._lock = threading.Lock()

    # What the attributes hold, or maps.

    def stats(self) -> Stats:
        """The normalisation's statistics and what stands for background."""
        stats = self.attributes.stats
        assert stats is not None, "attributes of version 2 have statistics"
        return stats

    def maps(self, level: int) -> LevelMaps:
        """The maps of a level."""
        level = self._checked(level)
        with self._lock:
            if level not in self._maps:
                self._maps[level] = self._read_maps(level)
            return self._maps[level]

    def tiles(self, level: int) -> NDArray[np.uint8]:
        """The tile state of every chunk, (rows, columns) uint8: BACKGROUND, CODED or LOSSLESS."""
        return self.maps(level).state

    def quality(self, level: int) -> NDArray[np.uint8]:
        """The quality of every chunk, (rows, columns) uint8, 0 to 100; 0 for background."""
        return self.maps(level).quality

    def psnr(self, level: int) -> NDArray[np.float32]:
        """The PSNR of every chunk in dB, (rows, columns) float32, as measured by decoding; NaN for background, infinite
        where nothing was lost."""
        return self.maps(level).psnr

    def block_error(self, level: int) -> NDArray[np.float32]:
        """The largest RMS error of any block of 16×16 pixels of every chunk, in grey values, (rows, columns) float32;
        NaN for background."""
        return self.maps(level).block_error

    def digests(self) -> NDArray[np.uint8]:
        """The SHA-256 of every shard, as `digest_rows` orders them, (shards, 32) uint8; zeros where there is none."""
        form = digests_form(self.attributes)
        if self.attributes.maps.inline is not None:
            raw = self._inline[-form.chunk_bytes :]
            return np.frombuffer(raw, np.uint8).reshape(form.shape)
        return self._plain(DIGESTS, form, self.attributes.maps.digests)

    # Chunks.

    def shard_reader(self, indices: IndexCache) -> ChunkSource:
        """The container itself: its maps say where chunks lie, so there are no indices to keep."""
        return self

    def chunk_bytes(self, keys: Sequence[ChunkKey]) -> list[bytes]:
        """The bytes of chunks that are not background, without their CRC, in the order of the keys."""
        sides = [self.attributes.shard_side(level) for level in range(len(self.attributes.levels))]
        by_shard = sorted((key.shard(sides[key.level]), key) for key in keys)
        groups = [(shard, [key for _, key in members]) for shard, members in groupby(by_shard, lambda item: item[0])]
        requests = [(shard_key(shard), self.maps(shard.level).size, keys) for shard, keys in groups]
        data = self._shard_chunks(requests, self._zero_latents)
        found = {
            key: chunk
            for (_, keys), chunks in zip(groups, data, strict=True)
            for key, chunk in zip(keys, chunks, strict=True)
        }
        return [found[key] for key in keys]

    def has_shard(self, key: ChunkKey) -> bool:
        """False: no shard says anything about chunks of background."""
        return False

    def check_absent(self, key: ChunkKey) -> None:
        """Nothing: the maps alone say which chunks there are."""

    def check_latents(self, key: ChunkKey, quality: int, y: NDArray[np.signedinteger]) -> None:
        """Raises FormatError unless these are the latents (C, n, n), with the quality, that were encoded at this
        place."""
        from histocodec.formats.container.check import latents_check  # here: it needs numba

        if quality == self.quality(key.level)[key.row, key.column]:
            if latents_check(y, quality) == self.maps(key.level).check[key.row, key.column]:
                return
            found = "latents that were not encoded here"
        else:
            expected = self.quality(key.level)[key.row, key.column]
            found = f"quality {quality}, and was encoded with {expected}"
        raise FormatError(
            f"{self.name}: level {key.level} chunk ({key.row}, {key.column}) has {found}: it was altered, or belongs "
            "to another place or slide"
        )

    def checks(self, keys: Sequence[ChunkKey]) -> NDArray[np.uint32]:
        """The checks that the latents of chunks must have, (n,) uint32."""
        return np.array([self.maps(key.level).check[key.row, key.column] for key in keys], np.uint32)

    def lossless(self, key: ChunkKey) -> Pixels:
        """The pixels of a chunk that is stored losslessly, cut at the level's edge: (h, w, 3) uint8."""
        maps, side = self.maps(key.level), self.attributes.chunk_side
        shard, form = key.shard(self.attributes.shard_side(key.level)), Form((side, side, 3), "uint8")
        ((data,),) = self._shard_chunks([(lossless_key(shard), maps.lossless_size, [key])], self._zero_pixels)
        where = f"{self.name}: lossless pixels of level {key.level} chunk ({key.row}, {key.column})"
        pixels = unpack_values(data, form, where)
        if int.from_bytes(crc32c(pixels.tobytes()), "little") != maps.lossless_check[key.row, key.column]:
            raise FormatError(f"{where}: were not encoded here; they belong to another place or slide")
        region = self.attributes.chunk_region(key)
        return np.ascontiguousarray(pixels[: region.height, : region.width])

    def _zero_latents(self, key: ChunkKey) -> bytes | None:
        """A chunk of zeros alone, which Zarr leaves out where it writes a shard again; None where something else was
        encoded there."""
        from histocodec.formats.container.check import check_weights  # here: it needs numba

        quality = int(self.quality(key.level)[key.row, key.column])
        check = quality * int(check_weights(0)[0]) & 0xFFFFFFFF
        return bytes((quality, 0, 0, 0)) if check == self.maps(key.level).check[key.row, key.column] else None

    def _zero_pixels(self, key: ChunkKey) -> bytes | None:
        """Likewise lossless pixels."""
        zeros = np.zeros((self.attributes.chunk_side, self.attributes.chunk_side, 3), np.uint8)
        check = int.from_bytes(crc32c(zeros.tobytes()), "little")
        if check != self.maps(key.level).lossless_check[key.row, key.column]:
            return None
        return pack_values(zeros, Form(zeros.shape, "uint8"))

    def _shard_chunks(
        self,
        requests: Sequence[tuple[str, NDArray[np.uint32], Sequence[ChunkKey]]],
        zero: Callable[[ChunkKey], bytes | None],
    ) -> list[list[bytes]]:
        """The bytes of chunks without their CRCs, for shards by their file, the map of sizes and the chunks that are
        wanted: where the sizes say, or, in a shard that Zarr has written again, where its own index says. `zero` gives
        what Zarr has left out."""
        places = [(file, self._places(sizes, keys)) for file, sizes, keys in requests]
        try:
            data = self.store.read_many(places)
        except FormatError:  # a shard that is missing, or shorter than it was
            data = [[] for _ in places]
        chunks = []
        for (file, _, keys), parts in zip(requests, data, strict=True):
            if parts and all(_is_sound(part) for part in parts):
                chunks.append([part[:-CRC_BYTES] for part in parts])
            else:
                chunks.append(self._indexed_chunks(file, keys, zero))
        return chunks

    def _places(self, sizes: NDArray[np.uint32], keys: Sequence[ChunkKey]) -> list[tuple[int, int]]:
        """Offset and size of chunks of one shard, as the map of sizes says. Raises UsageError for one that has none."""
        level = keys[0].level
        side = self.attributes.shard_side(level)
        shard = keys[0].shard(side)
        square = np.zeros((side, side), np.int64)
        part = sizes[shard.row * side : (shard.row + 1) * side, shard.column * side : (shard.column + 1) * side]
        square[: part.shape[0], : part.shape[1]] = part
        flat: list[int] = square.ravel().tolist()
        offsets = [0, *accumulate(flat)]
        places = []
        for key in keys:
            number = chunk_number(key, side)
            if not flat[number]:
                raise UsageError(f"{self.name}: level {level} chunk ({key.row}, {key.column}) is not stored")
            places.append((offsets[number], flat[number]))
        return places

    def _indexed_chunks(
        self, file: str, keys: Sequence[ChunkKey], zero: Callable[[ChunkKey], bytes | None]
    ) -> list[bytes]:
        """Chunks of a shard by its own index. Raises FormatError where the shard or one of them is damaged, or absent
        and not `zero`."""
        if self.store.size(file) is None:
            zeros = [data for key in keys if (data := zero(key)) is not None]
            if len(zeros) == len(keys):
                return zeros
        side = self.attributes.shard_side(keys[0].level)
        numbers, where = [chunk_number(key, side) for key in keys], self.store.where(file)
        tail, size = self.store.read_tail(file, index_bytes(side**2))
        if len(tail) < index_bytes(side**2):
            raise FormatError(f"{where}: has {size} bytes; the index of a shard alone has {index_bytes(side**2)}")
        index = ShardIndex.parse(tail, file_bytes=size, name=where)
        entries = [index.entries[number] for number in numbers]
        chunks = []
        for key, number, entry in zip(keys, numbers, entries, strict=True):
            if entry is None:
                if (data := zero(key)) is None:
                    raise FormatError(f"{where}: chunk {number} is missing")
                chunks.append(data)
                continue
            (chunk,) = self.store.read_parts(file, [entry])
            if not _is_sound(chunk):
                raise FormatError(f"{where}: chunk {number} does not match its checksum (altered or cut short)")
            chunks.append(chunk[:-CRC_BYTES])
        return chunks

    # Images, profile, model.

    def overview(self) -> Pixels | None:
        """The small image of the whole slide, (H, W, 3) uint8, or None where there is none."""
        if self.attributes.overview is None:
            return None
        return np.ascontiguousarray(self.array(OVERVIEW).transpose(1, 2, 0))

    def associated(self, name: str) -> Pixels:
        """An associated image, (H, W, 3) uint8. Raises UsageError for a name that the container does not have."""
        return self.array(f"associated-{name}")

    def icc_profile(self) -> bytes | None:
        """The source's ICC profile, or None where it has none."""
        return None if self.attributes.icc is None else self.array(ICC).tobytes()

    def model_bytes(self) -> bytes | None:
        """The embedded model file, its SHA-256 checked; None where no model is embedded."""
        return None if self.attributes.model.embedded is None else self.array(MODEL).tobytes()

    def array(self, name: str) -> NDArray[Any]:
        """One of the `small_arrays`, by name. Raises UsageError for a name that is none of them."""
        form = small_arrays(self.attributes).get(name)
        if form is None:
            raise UsageError(f"{self.name}: has no array {name}")
        sha256 = self.attributes.model.sha256 if name == MODEL else self.attributes.sha256[name]
        return self._plain(name, form, sha256)

    def latents(self, level: int) -> "zarr.Array[Any]":
        """latents/<level> as zarr sees it: int8 or int16 (C, rows, columns), decoded as it is indexed. Raises
        MissingModelError when it is indexed without the model, and UnsupportedError where zarr itself cannot read the
        way in which another program wrote the metadata."""
        name = f"{LATENTS}/{self._checked(level)}"
        check_metadata(self.store, name, latents_metadata(self.attributes, level))
        return self._opened_by_zarr(name)

    def latents_digest(self, level: int) -> str:
        """The SHA-256 of a level's checks, which names its latents."""
        return hashlib.sha256(self.maps(level).check.astype("<u4").tobytes()).hexdigest()

    def level_bytes(self, level: int) -> tuple[int, int]:
        """The bytes of a level's shards of latents, and of its chunks that are stored losslessly."""
        lossless = int(self.maps(level).lossless_size.sum()) if has_lossless(self.attributes) else 0
        return self.attributes.levels[level].bytes or 0, lossless

    # Reading within bounds.

    def _read_maps(self, level: int) -> LevelMaps:
        form, more = maps_form(self.attributes, level), self.attributes.maps.more
        if self.attributes.maps.inline is None:
            name = f"{MAPS}-{level}"
            values = self._plain(name, form, self.attributes.levels[level].maps)
            return LevelMaps.from_values(values, more, f"{self.name}/{name}")
        start = sum(maps_form(self.attributes, before).chunk_bytes for before in range(level))
        raw = self._inline[start : start + form.chunk_bytes]
        values = np.frombuffer(raw, np.uint8).reshape(form.shape)
        return LevelMaps.from_values(values, more, f"{self.name}: maps of level {level}")

    @cached_property
    def _inline(self) -> bytes:
        """The maps and digests within the attributes, unpacked."""
        packed, where = self.attributes.maps.inline, f"{self.name}: maps"
        assert packed is not None, "asked for maps that are arrays"
        forms = [maps_form(self.attributes, level) for level in range(len(self.attributes.levels))]
        size = sum(form.chunk_bytes for form in forms) + digests_form(self.attributes).chunk_bytes
        if size > MAX_INLINE_VALUES:
            raise FormatError(f"{where}: would have {size} bytes; at most {MAX_INLINE_VALUES} are allowed")
        return inflate(packed, size, where)

    def _plain(self, name: str, form: Form, sha256: str | None) -> NDArray[Any]:
        """The values of an array that is a single Zarr chunk, held to their SHA-256."""
        key = chunk_key(name, (0,) * len(form.shape))
        data = self.store.read(key, form.most_stored)
        values = unpack_values(data, form, f"{self.name}/{key}")
        stored = np.ascontiguousarray(values, form.stored_dtype).reshape(-1).view(np.uint8)  # without another copy
        if hashlib.sha256(stored.data).hexdigest() != sha256:
            raise FormatError(f"{self.name}/{key}: is not what was written here (its SHA-256 differs)")
        return values

    def __reduce__(self) -> tuple[type["ContainerV2"], tuple[Store, Attributes]]:
        return ContainerV2, (self.store, self.attributes)


def _is_sound(chunk: bytes) -> bool:
    return len(chunk) > CRC_BYTES and crc32c(chunk[:-CRC_BYTES]) == chunk[-CRC_BYTES:]
