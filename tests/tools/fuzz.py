"""Feed damaged inputs of every kind, by the million: only our own errors, no hang, no growing memory.

    python -m tests.tools.fuzz --chunks 1000000

Sound inputs are damaged as disks, networks and attackers do it: bits flipped, ends cut off, parts exchanged, checksums
repaired. An input follows from the target's name, the seed and the input's number. A finding is printed in hexadecimal,
so that it can become a test. `tests/formats/test_fuzz.py` runs a slice of this.
"""

import argparse
import faulthandler
import gzip
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from histocodec.codec.chunk import HyperChunkCodec
from histocodec.codec.transform import Transform
from histocodec.device import choose_device
from histocodec.errors import HistocodecError
from histocodec.formats.container import attributes_json
from histocodec.formats.container.arrays import METADATA, Form, pack_values, read_metadata, unpack_values
from histocodec.formats.container.fields import Node, parse_json
from histocodec.formats.container.layout import plain_forms
from histocodec.formats.container.maps import LOSSLESS_MAPS, MAPS, LevelMaps, planes_of
from histocodec.formats.container.pack import write_zip
from histocodec.formats.container.read import described_by
from histocodec.formats.container.shard import CRC_BYTES, crc32c, index_bytes, pack_shard, read_chunks, read_index
from histocodec.formats.container.store import FolderStore, open_store
from histocodec.formats.container.version1.attributes import from_json as from_version_1
from histocodec.formats.container.version1.layout import plain_arrays
from histocodec.formats.container.zipped import claims_zarr
from histocodec.formats.decode.slide import open_compressed
from histocodec.formats.decode.verify import verify
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.geometry import Margin
from histocodec.models.prior.exact import IntegerPrior
from histocodec.models.weights import ModelWeights, parse_model
from histocodec.normalise import DEFAULT_STATS
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from histocodec.train.data.patches import PatchSampler, training_image
from histocodec.train.finish.quantise_synthesis import with_integer_synthesis
from tests.support.peak import peak_memory
from tests.support.version1 import golden
from tests.support.version1 import to_json as to_version_1
from tests.tools.make_golden import GOLDEN, MODEL_IDS

MODEL_ID = MODEL_IDS["v1"]
SHAPE = (8, 16, 16)  # of a chunk of the golden model: small, so that a million take minutes
PATIENCE = 30  # seconds; an input that takes longer counts as a hang and ends the run with a traceback
GROWTH = 128  # MiB that a run may add to the process, however many inputs there are and whatever they declare
EFFECTS = (
    "refused",  # reading the pixels raises our error
    "same, verified",  # the same pixels, and `verify --quick` names the file
    "other, verified",  # attributes may be edited on purpose: reading accepts what fits, `verify --quick` does not
    "same",  # the same pixels, and nothing notices
    "other",  # wrong pixels, and nothing notices: must never happen
)
FILES = ("models", "containers", "containers-1", "archives")  # targets that read files
HOSTILE = [
    None, True, False, 0, -1, 1, 0.5, 10**400, 2**31, 2**53, 1e308, float("nan"), float("inf"), "", "0", "../x",
    "é\ud800", "x" * 2000, [], [[]], [1] * 100, {}, {"a": 1}, "Infinity", "int16", "\x1b[2J", "a/b", ".", "zarr.json",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A way into the code: `make` makes a damaged input for it, `take` parses or decodes it."""

    name: str
    make: Callable[[Random], bytes]
    take: Callable[[bytes], object]


@dataclass(frozen=True)
class Outcome:
    """What became of a target's inputs."""

    name: str
    accepted: int
    refused: int
    seconds: float
    slowest: float  # seconds of the slowest input
    growth: int  # of the peak of memory, in MiB

    def __str__(self) -> str:
        total = self.accepted + self.refused
        return (
            f"{self.name}: {total} inputs in {self.seconds:.0f} s, {self.refused} refused, {self.accepted} accepted, "
            f"slowest {1000 * self.slowest:.0f} ms, {self.growth} MiB of memory added"
        )


class Finding(AssertionError):
    """An input that had an effect which it must not have."""


def fuzz(target: Target, count: int, *, seed: int = 0) -> Outcome:
    """Give a target `count` inputs. Raises Finding at the first that raises anything but a HistocodecError."""
    with suppress(HistocodecError):
        target.take(target.make(Random(0)))  # compile and load before anything is timed
    accepted, slowest, before, began = 0, 0.0, peak_memory(), time.perf_counter()
    for number in range(count):
        data = target.make(Random(f"{target.name} {seed} {number}"))
        start = time.perf_counter()
        if number % 64 == 0:
            faulthandler.dump_traceback_later(64 * PATIENCE, exit=True)
        try:
            with suppress(HistocodecError):
                target.take(data)
                accepted += 1
        except Exception as exc:
            raise Finding(f"{target.name} {seed} {number}: {type(exc).__name__}: {exc}; input {data.hex()}") from exc
        slowest = max(slowest, time.perf_counter() - start)
    faulthandler.cancel_dump_traceback_later()
    growth = peak_memory() - before
    if growth > GROWTH or slowest > PATIENCE:
        raise Finding(f"{target.name} {seed}: {growth} MiB of memory and {slowest:.1f} s for an input")
    return Outcome(target.name, accepted, count - accepted, time.perf_counter() - began, slowest, growth)


# Damage.


def damaged(data: bytes, rng: Random, *, other: bytes = b"") -> bytes:
    """`data` with one to eight random changes; some insert bytes of `other`."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(8):
            case 0 | 1 | 2 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 3 if at < len(out):
                out[at] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
            case 4:
                del out[at:]
            case 5:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 40)))
            case 6:
                del out[at : at + rng.choice((1, 2, 4, 40))]
            case _:
                start = rng.randrange(len(other) + 1)
                out[at : at + 16] = other[start : start + 16]
    return bytes(out)


def damaged_json(value: Any, rng: Random) -> Any:
    """A copy of a JSON value in which one part is replaced, missing or new."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copy = rng.choice(keys), value.copy()
        match rng.randrange(12):
            case 0:
                del copy[key]
            case 1 if isinstance(copy, dict):
                copy[rng.choice(("more", "", "é", "x" * 300))] = rng.choice(HOSTILE)
            case 1 if isinstance(copy, list):
                copy *= 2
            case _:
                copy[key] = damaged_json(value[key], rng)
        return copy
    if isinstance(value, int) and not isinstance(value, bool) and value < 2**60 and rng.random() < 0.5:
        return rng.choice((value + 1, -value, 2 * value, value * 1000, value ^ 1 << rng.randrange(40), value + 0.0))
    return rng.choice(HOSTILE)


# Sound inputs.


@lru_cache(maxsize=1)
def golden_weights() -> ModelWeights:
    return parse_model(gzip.decompress((GOLDEN / "v1" / f"{MODEL_ID}.safetensors.gz").read_bytes()), name=MODEL_ID)


@lru_cache(maxsize=1)
def sound_chunks() -> tuple[bytes, ...]:
    """Chunks of all qualities and extents, with and without escapes."""
    codec, chunks = HyperChunkCodec(golden_weights()), []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        y = np.rint(rng.laplace(0, 10 ** rng.uniform(-1, 3.2), SHAPE)).clip(-(2**15), 2**15 - 1).astype(np.int16)
        ends = rng.integers(1, (*SHAPE[:2], SHAPE[2]), endpoint=True)
        y[ends[0] :], y[:, ends[1] :], y[:, :, ends[2] :] = 0, 0, 0
        chunks.append(codec.encode(y, int(rng.integers(101))))
    return (*chunks, codec.encode(np.zeros(SHAPE, np.int16), 3))


def small_container(folder: Path) -> Path:
    """Encode a container of one chunk, with an ICC profile and its model, so that it needs no other file."""
    folder.mkdir(exist_ok=True)
    model, root = folder / f"{MODEL_ID}.safetensors", folder / "small.zarr"
    model.write_bytes(golden_weights().data)
    slide = ArraySlide(synthetic_slide(150, 130, seed=5), name="small", mpp=(0.25, 0.5), icc_profile=b"profile")
    encode_slide(slide, root, EncodeOptions(model=str(model), device="cpu", workers=1, embed_model=True))
    return root


def golden_container(folder: Path) -> Path:
    """The golden container of version 1, and its model, which HISTOCODEC_MODELS then names."""
    os.environ["HISTOCODEC_MODELS"] = str(folder)
    return golden(folder)


@lru_cache(maxsize=1)
def sound_attributes() -> Any:
    """Attributes of version 2 with all that there can be."""
    with tempfile.TemporaryDirectory() as folder:
        value = _attributes_of(small_container(Path(folder)))
    image = {"width": 7, "height": 6, "sha256": "0" * 64}
    more = {"overview": image, "associated": [{"name": "thumbnail", **image}], "extensions": {"org.x": [1.5, None]}}
    return {**value, **more, "mpp": [0.25, 0.5], "objective_power": 40, "dropped": ["label"]}


@lru_cache(maxsize=1)
def sound_attributes_1() -> Any:
    """The same of version 1."""
    with tempfile.TemporaryDirectory() as folder:
        value = _attributes_of(golden(Path(folder)))
    return {**value, "associated": [{"name": "thumbnail", "width": 7, "height": 6}], "overview": [15, 10]}


def _attributes_of(root: Path) -> dict[str, Any]:
    node = described_by(read_metadata(FolderStore(root), ""))
    assert node is not None and isinstance(node.value, dict)
    return node.value


# Targets.


def make_chunk(rng: Random) -> bytes:
    chunk = rng.choice(sound_chunks())
    match rng.randrange(8):
        case 0:
            return bytes(rng.randrange(n) for n in (102, 4, 10, 10)) + rng.randbytes(rng.randrange(200))
        case 1:
            return bytes((rng.randrange(101), *chunk[1:4])) + damaged(chunk[4:], rng)
        case 2:  # the states, in which everything begins
            at = 4 + rng.randrange(4)
            return chunk[:at] + rng.randbytes(2) + chunk[at + 2 :]
    return damaged(chunk, rng, other=rng.choice(sound_chunks()))


class Chunks:
    """Decodes chunks with numpy, and every fiftieth with the float64 oracle, too: both must agree."""

    def __init__(self) -> None:
        weights = golden_weights()
        self.codec = HyperChunkCodec(weights)
        self.oracle = HyperChunkCodec(weights, prior=IntegerPrior(weights.config, weights.arrays, dtype="float64"))
        self.count = 0

    def take(self, data: bytes) -> None:
        self.count += 1
        found = self._decoded(self.codec, data)
        if self.count % 50 == 0:
            assert found == self._decoded(self.oracle, data), "two priors disagree"
        if isinstance(found, HistocodecError):
            raise found

    @staticmethod
    def _decoded(codec: HyperChunkCodec, data: bytes) -> "bytes | Refusal":
        try:
            return codec.decode(data, SHAPE).tobytes()
        except HistocodecError as exc:
            return Refusal(str(exc))


class Refusal(HistocodecError):
    """Stands for any HistocodecError, and equals every other refusal."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refusal)

    __hash__ = HistocodecError.__hash__


def make_shard(rng: Random) -> bytes:
    slots = [rng.choice((None, rng.randbytes(rng.randrange(1, 9)))) for _ in range(4)]
    shard = bytearray(pack_shard([b"x", *slots[1:]]))
    if rng.random() < 0.7:  # a wrong index under a sound checksum
        at = len(shard) - index_bytes(4) + 8 * rng.randrange(8)
        wrong = rng.choice((0, 1, 3, 4, 5, len(shard), 2**26 + 4, 2**63, 2**64 - 1, rng.randrange(100)))
        shard[at : at + 8] = struct.pack("<Q", wrong)
        shard[-CRC_BYTES:] = crc32c(bytes(shard[-index_bytes(4) : -CRC_BYTES]))
        return bytes(shard)
    return damaged(bytes(shard), rng)


class Shards:
    """Reads every chunk of a shard from a file, as a reader of a container does."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "shard"

    def take(self, data: bytes) -> None:
        self.file.write_bytes(data)
        store, key = FolderStore(self.file.parent), self.file.name
        index = read_index(store, key, 4)
        covered = [at for entry in index.entries if entry for at in range(entry[0], sum(entry))]
        assert len(covered) == len(set(covered)), "chunks overlap"
        assert all(at < len(data) - index_bytes(4) for at in covered), "a chunk lies in the index"
        read_chunks(store, key, index, range(4))


def make_attributes(rng: Random) -> bytes:
    """Mostly sealed anew: the digest would refuse everything else."""
    value = _altered(sound_attributes(), rng)
    if isinstance(value, dict) and rng.random() < 0.9:
        with suppress(HistocodecError):
            value = {**value, "digest": attributes_json.digest_of(value)}
    text = json.dumps(value).encode()
    return damaged(text, rng) if rng.random() < 0.1 else text


def make_attributes_1(rng: Random) -> bytes:
    text = json.dumps(_altered(sound_attributes_1(), rng)).encode()
    return damaged(text, rng) if rng.random() < 0.3 else text


def _altered(value: Any, rng: Random) -> Any:
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = damaged_json(value, rng)
    return value


def take_attributes(data: bytes) -> None:
    attributes = attributes_json.from_json(parse_json(data, "zarr.json"))
    again = attributes_json.from_json(Node(attributes_json.to_json(attributes), "again"))
    assert replace(again, provenance=attributes.provenance) == attributes, "attributes change when written and read"
    assert sum(form.chunk_bytes for form in plain_forms(attributes).values()) < 2**34


def take_attributes_1(data: bytes) -> None:
    attributes = from_version_1(parse_json(data, "zarr.json"))
    again = from_version_1(Node(to_version_1(attributes), "again"))
    assert again == attributes, "attributes change when written and read"
    assert sum(form.chunk_bytes for form in plain_arrays(attributes).values()) < 2**34


MAPPED = planes_of(LOSSLESS_MAPS), 2, 2  # bytes, rows, columns


def make_maps(rng: Random) -> bytes:
    """Maps of chunks of all states, in which a few values are of those that mean something elsewhere."""
    states = [rng.choice((0, 1, 1, 2)) for _ in range(4)]
    stored, lossless = [state > 0 for state in states], [state == 2 for state in states]
    maps = [
        states,
        [rng.randrange(101) * there for there in stored],
        [rng.randrange(5, 9999) * there for there in stored],
        [rng.randrange(2**32) * there for there in stored],
        [rng.randrange(20_001) if there else 2**16 - 1 for there in stored],
        [rng.randrange(25_501) if there else 2**16 - 1 for there in stored],
        [rng.randrange(5, 9999) * there for there in lossless],
        [rng.randrange(2**32) * there for there in lossless],
    ]
    for _ in range(rng.choice((0, 1, 1, 2))):
        odd = (0, 1, 2, 3, 4, 100, 101, 25_501, 2**16 - 2, 2**16 - 1, 2**26 + 4, 2**26 + 5, 2**31, 2**32 - 1)
        rng.choice(maps)[rng.randrange(4)] = rng.choice(odd)
    widths = [width for _, width in (*MAPS, *LOSSLESS_MAPS)]
    planes = [
        [value >> 8 * byte & 255 for value in values]
        for values, width in zip(maps, widths, strict=True)
        for byte in range(width)
    ]
    return np.array(planes, np.uint8).tobytes()


def take_maps(data: bytes) -> None:
    values = np.frombuffer(data, np.uint8).reshape(MAPPED)
    maps = LevelMaps.from_values(values, LOSSLESS_MAPS, "maps")
    assert np.array_equal(maps.values(lossless=True), values), "maps change when read and written"


FORM = Form((64, 64), "uint8")


def make_array(rng: Random) -> bytes:
    values = np.frombuffer(bytes(rng.choice((0, 64)) for _ in range(64)) * 64, np.uint8)
    return damaged(pack_values(values.reshape(FORM.shape), FORM), rng)


@lru_cache(maxsize=1)
def integer_weights() -> ModelWeights:
    """The golden model with an integer synthesis."""
    image = training_image(synthetic_slide(256, 256, seed=0), "fuzz", choose_device("cpu"))
    assert image is not None
    return with_integer_synthesis(golden_weights(), PatchSampler([image], batch=2, size=64, seed=0), MODEL_ID)


def make_model(rng: Random) -> bytes:
    data = rng.choice((golden_weights(), integer_weights())).data
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = rng.randrange(4)
    if kind == 0:
        return damaged(data[: 8 + size], rng) + body
    if kind == 1:
        return data[: 8 + size] + damaged(body, rng)
    if kind == 2:
        config = json.loads(header["__metadata__"]["config"])
        header["__metadata__"]["config"] = json.dumps(damaged_json(config, rng))
    else:
        header = damaged_json(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def take_model(data: bytes) -> None:
    weights = parse_model(data, name="model")
    window = np.ones((weights.hyper.latent_channels, 3, 3), np.float32)
    with np.errstate(all="ignore"):  # weights that are not finite may give any pixels
        Transform(weights, choose_device("cpu")).synthesise([window], Margin(), DEFAULT_STATS)
    HyperChunkCodec(weights).decode(sound_chunks()[0], SHAPE)


class Archives:
    """Damages a container that is one file, then reads and verifies it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "small.hcz"
        write_zip(small_container(folder / "archived"), self.file)
        self.sound = self.file.read_bytes()

    def make(self, rng: Random) -> bytes:
        """The archive with damage, half of it in the directory at its end."""
        at = rng.choice((0, self.sound.index(b"PK\x01\x02")))
        return self.sound[:at] + damaged(self.sound[at:], rng, other=self.sound)

    def take(self, data: bytes) -> None:
        self.file.write_bytes(data)
        with suppress(HistocodecError):
            verify(self.file, device="cpu", workers=1)
        with open_compressed(self.file, device="cpu", workers=1) as slide:
            slide.read(slide.levels[0].region, 0)


class Zips:
    """Damages the headers, the directory or anything else of a ZIP archive, then reads all that it holds."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.file = folder / "archive.hcz"
        write_zip(root, self.file)
        self.sound = self.file.read_bytes()
        self.directory = self.sound.index(b"PK\1\2")

    def make(self, rng: Random) -> bytes:
        """The damaged archive, most often damaged in its directory or in its first headers."""
        start, end = rng.choice(((self.directory, len(self.sound)), (0, 200), (0, len(self.sound))))
        return self.sound[:start] + damaged(self.sound[start:end], rng) + self.sound[end:]

    def take(self, data: bytes) -> None:
        self.file.write_bytes(data)
        claims_zarr(self.file)
        store = open_store(self.file)
        list(store.problems())
        assert sum(len(store.read(key, len(data))) for key, _ in store.entries()) < len(data), "an archive is a bomb"


class Containers:
    """Damages one file of a container on disk, then reads and verifies the whole container."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = sorted(path for path in self.root.rglob("*") if path.is_file())
        self.sound = {file: file.read_bytes() for file in self.files}
        self.pixels = self.read()

    def make(self, rng: Random) -> bytes:
        """The number of a file, and its damaged contents."""
        file = rng.choice(self.files)
        other = self.sound[rng.choice(self.files)]
        return bytes([self.files.index(file)]) + damaged(self.sound[file], rng, other=other)

    def take(self, data: bytes) -> None:
        file = self.files[data[0]]
        file.write_bytes(data[1:])
        try:
            with suppress(HistocodecError):
                verify(self.root, device="cpu", workers=1)
            self.read()
        finally:
            file.write_bytes(self.sound[file])

    def read(self) -> np.ndarray:
        with open_compressed(self.root, device="cpu", workers=1) as slide:
            return slide.read(slide.levels[0].region, 0)

    def flips(self, step: int = 1) -> Iterator[tuple[str, str]]:
        """Change each `step`-th byte of every file in turn, one bit and then all. Yields the file and the effect."""
        for file, sound in self.sound.items():
            for at in range(0, len(sound), step):
                for mask in (1 << at % 8, 255):
                    file.write_bytes(sound[:at] + bytes([sound[at] ^ mask]) + sound[at + 1 :])
                    yield file.relative_to(self.root).as_posix(), self._effect()
            file.write_bytes(sound)

    def _effect(self) -> str:
        """What the present damage does: one of EFFECTS."""
        try:
            same = np.array_equal(self.read(), self.pixels)
        except HistocodecError:
            return "refused"
        return ("same, verified" if same else "other, verified") if self._noticed() else "same" if same else "other"

    def _noticed(self) -> bool:
        """Whether `verify --quick` finds a problem."""
        try:
            return not verify(self.root, device="cpu", workers=1, quick=True).ok
        except HistocodecError:
            return True


def targets(folder: Path) -> list[Target]:
    """All targets. Their files go to `folder`."""
    containers, containers_1 = Containers(small_container(folder)), Containers(golden_container(folder))
    archives = Archives(folder)
    zips = Zips(folder, containers.root)
    return [
        Target("chunks", make_chunk, Chunks().take),
        Target("shards", make_shard, Shards(folder).take),
        Target("attributes", make_attributes, take_attributes),
        Target("attributes-1", make_attributes_1, take_attributes_1),
        Target("maps", make_maps, take_maps),
        Target("arrays", make_array, lambda data: unpack_values(data, FORM, "array")),
        Target("models", make_model, take_model),
        Target("containers", containers.make, containers.take),
        Target("containers-1", containers_1.make, containers_1.take),
        Target("zips", zips.make, zips.take),
        Target("archives", archives.make, archives.take),
    ]


def flip_all(root: Path, *, step: int = 1, version: int = 2) -> dict[str, int]:
    """How many changed bytes of a container had each of EFFECTS. Raises Finding where one gives wrong pixels unnoticed,
    or, but for attributes of version 1, wrong pixels at all."""
    count = dict.fromkeys(EFFECTS, 0)
    for name, effect in Containers(root).flips(step):
        if effect == "other" or (effect == "other, verified" and (version, name) != (1, METADATA)):
            raise Finding(f"{name}: a changed byte gives other pixels")
        count[effect] += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m tests.tools.fuzz")
    parser.add_argument("--chunks", type=int, default=1_000_000, help="damaged latent chunks")
    parser.add_argument("--others", type=int, default=100_000, help="damaged shards, attributes and arrays, each")
    parser.add_argument("--files", type=int, default=5_000, help="damaged models, containers and archives, each")
    parser.add_argument(
        "--flips", type=int, default=1, metavar="STEP", help="change every STEP-th byte of a container; 0 changes none"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = {"chunks": given.chunks} | dict.fromkeys(FILES, given.files)
        for target in targets(Path(folder)):
            if count := counts.get(target.name, given.others):
                print(fuzz(target, count, seed=given.seed), flush=True)
    if given.flips:
        for version, make in ((1, golden_container), (2, small_container)):
            with tempfile.TemporaryDirectory() as folder:
                for effect, count in flip_all(make(Path(folder)), step=given.flips, version=version).items():
                    print(f"changed bytes of version {version}: {count} {effect}")


if __name__ == "__main__":
    main()
