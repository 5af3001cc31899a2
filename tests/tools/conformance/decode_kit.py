"""Decode containers in this process, as its environment says, and print what came out.

    python -m tests.tools.conformance.decode_kit FOLDER [--encode NAME] [--device cuda] [--compile] [--latents-only]

FOLDER holds the model, the containers and their pixels in float64, as `unpack` lays them out. With --encode, the kit's
widest image is encoded into FOLDER/NAME.zarr first. The output is one JSON object: `Finding`s by the container's name.
"""

import argparse
import gzip
import hashlib
import json
import shutil
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocodec.codec.chunk import HyperChunkCodec, fast_chunk_codec, quality_of
from histocodec.formats.container.abstract_container import Container
from histocodec.formats.container.pack import unpack as unpack_container
from histocodec.formats.container.read import open_container
from histocodec.formats.container.shard import ShardIndex
from histocodec.formats.container.states import BACKGROUND, chunks_where
from histocodec.formats.container.store import open_store
from histocodec.geometry import ShardKey
from histocodec.models.weights import ModelWeights, load_model
from tests.tools.conformance import KIT, KIT_2, MODEL_ID, STEP

if TYPE_CHECKING:
    import torch

    from histocodec.slide import Pixels


@dataclass(frozen=True)
class Finding:
    """What decoding one container gave."""

    latents: list[str]  # SHA-256 of each level's latents, decoded by numpy
    fast: list[str]  # the same, decoded by the fastest implementation
    rewritten: bool  # whether both encode the latents to the same bytes again
    pixels: dict[str, tuple[int, float]]  # by dtype: largest distance from float64, and the share of pixels beyond 1


class Indices:
    """A cache of indices that keeps none."""

    def get(self, key: ShardKey) -> ShardIndex | None:
        """None."""

    def put(self, key: ShardKey, value: ShardIndex, size: int) -> None:
        """Nothing."""


def unpack(folder: Path) -> None:
    """Write both kits to a folder, unpacked; the containers of version 2 also as one file each."""
    (folder / f"{MODEL_ID}.safetensors").write_bytes(gzip.decompress((KIT / "model.safetensors.gz").read_bytes()))
    for packed in KIT.glob("*.zarr.zip"):
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder / packed.stem)
    for archive in KIT_2.glob("*.hcz"):
        shutil.copy(archive, folder)
        unpack_container(open_store(archive), folder / f"{archive.stem}.hc.zarr")
    for pixels in (*KIT.glob("*.npy"), *KIT_2.glob("*.npy")):
        shutil.copy(pixels, folder)


def containers_in(folder: Path) -> list[Path]:
    """The containers in a folder, of whichever kind."""
    return sorted((*folder.glob("*.zarr"), *folder.glob("*.hcz")))


def expected_pixels(container: Path) -> Path:
    """The file of a container's pixels in float64."""
    return container.with_name(f"{container.name.partition('.')[0]}.npy")


def decode_chunks(container: Container, codec: HyperChunkCodec) -> tuple[list[str], bool]:
    """The SHA-256 of each level's latents as int16, and whether every chunk is encoded to the same bytes again."""
    attributes, digests, same = container.attributes, [], True
    source = container.shard_reader(Indices())
    for level in range(len(attributes.levels)):
        grid, side = attributes.grid(level), attributes.chunk
        shape = (attributes.model.channels, side, side)
        whole = np.zeros((shape[0], grid.chunk_rows * side, grid.chunk_columns * side), "<i2")
        for key in chunks_where(level, container.tiles(level) != BACKGROUND):
            (data,) = source.chunk_bytes([key])
            y, row, column = codec.decode(data, shape), key.row, key.column
            source.check_latents(key, quality_of(data), y)
            quality = quality_of(data)  # the kit's own z are plainly h_a's, as its writer took them
            plain = codec.encode(y, quality, z=codec.hyper_latents(y, quality, reluctance=0)) if y.any() else data
            same &= data in (codec.encode(y, quality), plain)
            whole[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = y
        cut = np.ascontiguousarray(whole[:, : grid.latent_rows, : grid.latent_columns])
        digests.append(hashlib.sha256(cut.tobytes()).hexdigest())
    return digests, same


def latent_digests(path: Path, weights: ModelWeights) -> list[str]:
    """The SHA-256 of each level's latents, decoded by numpy."""
    return decode_chunks(open_container(path), HyperChunkCodec(weights))[0]


def decoded_pixels(path: Path, weights: ModelWeights, device: str, dtype: "torch.dtype") -> "Pixels":
    """Every STEP-th pixel of level 0 in each direction: (H / STEP, W / STEP, 3) uint8."""
    from histocodec.device import choose_device
    from histocodec.formats.decode.cache import Cache
    from histocodec.formats.decode.pixels import PixelDecoder
    from histocodec.geometry import ChunkKey, Grid, Region
    from histocodec.threads import Workers

    container, workers = open_container(path), Workers(2)
    level = container.attributes.levels[0]
    grid = Grid(level.height, level.width, container.attributes.chunk_side)
    level_region = Region(0, 0, level.width, level.height)
    decoder = PixelDecoder(container, weights, choose_device(device), workers, cache=Cache(64 << 20), dtype=dtype)
    pixels = np.empty((level.height, level.width, 3), np.uint8)
    keys = [ChunkKey(0, row, column) for row in range(grid.rows) for column in range(grid.columns)]
    for key, chunk in decoder.chunks(keys):
        pixels[grid.region(key.row, key.column).within(level_region)] = chunk
    workers.close()
    return pixels[::STEP, ::STEP]


def oracle_pixels(path: Path, weights: ModelWeights) -> "Pixels":
    """The same pixels, synthesised in float64."""
    import torch

    return decoded_pixels(path, weights, "cpu", torch.float64)


def _distance(found: "Pixels", expected: "Pixels") -> tuple[int, float]:
    difference = np.abs(found.astype(np.int16) - expected)
    return int(difference.max()), float((difference > 1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m tests.tools.conformance.decode_kit"
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encode", metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the transforms with torch.compile")
    parser.add_argument(
        "--latents-only", action="store_true", help="decode the smallest container's latents, without torch"
    )
    given = parser.parse_args()
    weights = load_model(given.folder / f"{MODEL_ID}.safetensors")
    if given.latents_only:
        found = {}
        for name in ("small.zarr", "small-2.hcz"):
            digests, same = decode_chunks(open_container(given.folder / name), HyperChunkCodec(weights))
            found[name] = asdict(Finding(digests, digests, same, {}))
        assert "torch" not in sys.modules
        print(json.dumps(found))
        return
    import torch

    if given.compile:
        from histocodec.models.transforms.network import Analysis, Synthesis

        for network in (Analysis, Synthesis):
            network.window = torch.compile(network.window, dynamic=True)
    if given.encode:
        from tests.tools.conformance.make import encode, images

        path = given.folder / f"{given.encode}.zarr"
        image, options = images()["wide"]
        encode(image, path, options, given.folder / f"{MODEL_ID}.safetensors")
        np.save(expected_pixels(path), oracle_pixels(path, weights))
    found = {}
    for path in containers_in(given.folder):
        container, expected = open_container(path), np.load(expected_pixels(path))
        latents, same = decode_chunks(container, HyperChunkCodec(weights))
        fast, also = decode_chunks(container, fast_chunk_codec(weights))
        pixels = {
            str(dtype).removeprefix("torch."): _distance(decoded_pixels(path, weights, given.device, dtype), expected)
            for dtype in (torch.float32, torch.bfloat16)
        }
        found[path.name] = asdict(Finding(latents, fast, same and also, pixels))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
