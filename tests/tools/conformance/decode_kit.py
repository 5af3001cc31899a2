"""Decode containers in this process, as its environment says, and print what came out.

    python -m tests.tools.conformance.decode_kit FOLDER [--encode NAME] [--device cuda] [--compile] [--latents-only]

FOLDER holds the model, the containers and their pixels in float64, as `unpack` lays them out. With --encode, the kit's
widest image is encoded into FOLDER/NAME.zarr first. The output is one JSON object: `Finding`s by the container's name.
"""

import argparse
import gzip
import hashlib
import json
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histocodec.codec.chunk import HyperChunkCodec, fast_chunk_codec, quality_of
from histocodec.formats.container.layout import BACKGROUND, shard_key
from histocodec.formats.container.read import Container
from histocodec.formats.container.shard import read_chunk, read_index
from histocodec.geometry import ShardKey
from histocodec.models.weights import ModelWeights, load_model
from tests.tools.conformance import KIT, MODEL_ID, STEP

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


def unpack(folder: Path) -> None:
    """Write the kit to a folder, unpacked."""
    (folder / f"{MODEL_ID}.safetensors").write_bytes(gzip.decompress((KIT / "model.safetensors.gz").read_bytes()))
    for packed in KIT.glob("*.zarr.zip"):
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder / packed.stem)
    for pixels in KIT.glob("*.npy"):
        (folder / pixels.name).write_bytes(pixels.read_bytes())


def decode_chunks(container: Container, codec: HyperChunkCodec) -> tuple[list[str], bool]:
    """The SHA-256 of each level's latents as int16, and whether every chunk is encoded to the same bytes again."""
    attributes, digests, same = container.attributes, [], True
    for level in range(len(attributes.levels)):
        grid, side, across = attributes.grid(level), attributes.chunk, attributes.shard
        shape = (attributes.model.channels, side, side)
        whole = np.zeros((shape[0], grid.chunk_rows * side, grid.chunk_columns * side), "<i2")
        for row, column in np.argwhere(container.tiles(level) != BACKGROUND):
            name = shard_key(ShardKey(level, row // across, column // across))
            index, number = read_index(container.store, name, across**2), row % across * across + column % across
            data = read_chunk(container.store, name, index, number)
            assert data is not None
            y = codec.decode(data, shape)
            quality = quality_of(data)  # the kit's own z are plainly h_a's, as its writer took them
            plain = codec.encode(y, quality, z=codec.hyper_latents(y, quality, reluctance=0)) if y.any() else data
            same &= data in (codec.encode(y, quality), plain)
            whole[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = y
        cut = np.ascontiguousarray(whole[:, : grid.latent_rows, : grid.latent_columns])
        digests.append(hashlib.sha256(cut.tobytes()).hexdigest())
    return digests, same


def latent_digests(path: Path, weights: ModelWeights) -> list[str]:
    """The SHA-256 of each level's latents, decoded by numpy."""
    return decode_chunks(Container.open(path), HyperChunkCodec(weights))[0]


def decoded_pixels(path: Path, weights: ModelWeights, device: str, dtype: "torch.dtype") -> "Pixels":
    """Every STEP-th pixel of level 0 in each direction: (H / STEP, W / STEP, 3) uint8."""
    from histocodec.device import choose_device
    from histocodec.formats.decode.cache import Cache
    from histocodec.formats.decode.pixels import PixelDecoder
    from histocodec.geometry import ChunkKey, Grid, Region
    from histocodec.threads import Workers

    container, workers = Container.open(path), Workers(2)
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
        digests, same = decode_chunks(Container.open(given.folder / "small.zarr"), HyperChunkCodec(weights))
        assert "torch" not in sys.modules
        print(json.dumps({"small": asdict(Finding(digests, digests, same, {}))}))
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
        np.save(path.with_suffix(".npy"), oracle_pixels(path, weights))
    found = {}
    for path in sorted(given.folder.glob("*.zarr")):
        container, expected = Container.open(path), np.load(path.with_suffix(".npy"))
        latents, same = decode_chunks(container, HyperChunkCodec(weights))
        fast, also = decode_chunks(container, fast_chunk_codec(weights))
        pixels = {
            str(dtype).removeprefix("torch."): _distance(decoded_pixels(path, weights, given.device, dtype), expected)
            for dtype in (torch.float32, torch.bfloat16)
        }
        found[path.stem] = asdict(Finding(latents, fast, same and also, pixels))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
