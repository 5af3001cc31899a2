"""Hostile containers give our errors and cost little memory."""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import histocodec
from histocodec.errors import FormatError
from histocodec.formats.container.arrays import chunk_path, pack_bytes, write_metadata
from histocodec.formats.container.attributes import MAX_MODEL
from histocodec.formats.container.layout import DIGEST_BYTES, small_arrays
from histocodec.formats.container.maps import LevelMaps
from tests.support.damage import edited, fill_shard, largest_shard
from tests.support.peak import linux_only
from tests.support.version2 import Contents, opened, resealed

REPOSITORY = Path(histocodec.__file__).parents[1]

# Opens one container after the other and prints the peak of memory so far.
OPEN = """
import sys
from pathlib import Path
import histocodec
from histocodec.errors import HistocodecError
from histocodec.formats.decode.verify import verify
from tests.support.peak import peak_memory

def outcome(path):
    try:
        with histocodec.open(path, device="cpu") as slide:
            slide.read_array(0, 0, 64, 64)
        problems = verify(path, device="cpu").problems
        return problems[0] if problems else "sound"
    except HistocodecError as exc:
        return f"{type(exc).__name__}: {exc}"

for path in map(Path, sys.argv[1:]):
    said = outcome(path)
    print(path.name, peak_memory(), " ".join(said.split()), sep="|")
"""


@linux_only
def test_hostile_containers_cost_little_memory_and_give_our_errors(sound_folder: Path, tmp_path: Path) -> None:
    names = [name for name, _ in hostile()]
    for name, change in hostile():
        change(Path(shutil.copytree(sound_folder / "sound.zarr", tmp_path / name)))
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(sound_folder / "sound.zarr"), *(str(tmp_path / name) for name in names)],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (_, usual, sound), *lines = [line.split("|", 2) for line in done.stdout.splitlines()]
    assert sound == "sound"
    assert [name for name, *_ in lines] == names
    for name, peak, said in lines:  # peaks of all so far, from the smallest to the largest
        assert f"/{name}" in said, (name, said)
        assert int(peak) - int(usual) < (600 if name == "inflated-model" else 200), (name, peak, said)


def hostile() -> list[tuple[str, Callable[[Path], object]]]:
    level = "attributes.histocodec.levels"
    return [
        ("huge-sides", edited((f"{level}.0.width", 2**31 - 1), (f"{level}.0.height", 2**31 - 1))),
        ("beyond-huge", edited((f"{level}.0.width", 10**400))),
        ("negative", edited((f"{level}.0.width", -5))),
        ("nothing", edited((f"{level}.0.height", 0))),
        ("text-for-number", edited((f"{level}.0.width", "1100"))),
        ("list-for-object", edited(("attributes.histocodec", [1, 2]))),
        ("true-for-number", edited(("attributes.histocodec.chunk", True))),
        ("not-a-number", edited(("attributes.histocodec.mpp", [float("nan"), 1]))),
        ("no-levels", edited((level, []))),
        ("other-channels", edited(("attributes.histocodec.model.channels", 1024))),
        ("path-for-model", edited(("attributes.histocodec.model.id", "../../etc/passwd"))),
        ("huge-overview", edited(("attributes.histocodec.overview.width", 2**20))),
        ("deep-json", lambda path: (path / "zarr.json").write_text("[" * 100_000)),
        ("many-values", lambda path: (path / "zarr.json").write_text("[" + "{}," * 600_000 + "0]")),
        ("long-and-thin", long_and_thin),
        ("many-levels", many_levels),
        ("many-maps", many_maps),
        ("bomb-in-the-attributes", bomb_in_the_attributes),
        ("bomb-in-an-array", bomb_in_an_array),
        ("endless-latent", endless_latent),
        ("pipe", pipe),
        ("absurd-index", absurd_index),
        ("random-chunks", random_chunks),
        ("inflated-model", inflated_model),  # 256 MiB, twice while it is unpacked
    ]


def hollow(path: Path, **changes: Any) -> None:
    """All metadata as the changed attributes want it, and maps of nothing but background, which pack a thousand to
    one."""
    contents = Contents.of(path)
    attributes = contents.attributes = replace(contents.attributes, **changes)
    shutil.rmtree(path / "latents/0")
    contents.maps = []
    for level in range(len(attributes.levels)):
        grid = attributes.grid(level)
        shape = (grid.chunk_rows, grid.chunk_columns)
        bytes_, words = np.zeros(shape, np.uint8), np.zeros(shape, np.uint32)
        nothing = np.full(shape, np.nan, np.float32)
        contents.maps.append(LevelMaps(bytes_, bytes_, words, words, nothing, nothing, words, words))
    shards = sum(attributes.grid(level).shards for level in range(len(attributes.levels)))
    contents.digests = np.zeros((shards, DIGEST_BYTES), np.uint8)
    contents.write(path)


def long_and_thin(path: Path) -> None:
    """One row of chunks in shards of 32 rows."""
    level = opened(path).attributes.levels[0]
    hollow(path, chunk=4, levels=(replace(level, width=64 * 2**20, height=1, shard=32),))


def many_maps(path: Path) -> None:
    """Maps that nobody knows, of a gigabyte that packs a thousand to one."""

    def change(value: dict[str, Any]) -> None:
        value["planes"] = [[f"p{n}", 8] for n in range(32)]
        value["levels"] = [{**value["levels"][0], "width": 64 * 2**20, "height": 64, "shard": 32, "maps": "0" * 64}]
        value["digests"] = "0" * 64
        value["chunk"] = 4
        value.pop("maps", None)

    resealed(path, change)


def many_levels(path: Path) -> None:
    """64 levels, and each chunk in a shard of its own."""
    level = opened(path).attributes.levels[0]
    hollow(path, chunk=4, levels=(replace(level, width=64 * 1024, height=64, shard=1),) * 64)


def inflated_model(path: Path) -> None:
    resealed(path, lambda value: value["model"].update(embedded=MAX_MODEL))
    chunk_path(path / "model", (0,)).write_bytes(pack_bytes(bytes(MAX_MODEL)))
    write_metadata(path / "model", small_arrays(opened(path).attributes)["model"].metadata())


def packed(raw: bytes) -> str:
    return base64.b64encode(pack_bytes(raw)).decode()


def bomb_in_the_attributes(path: Path) -> None:
    """3 MB in 3 kB, which is allowed, of maps that have a few hundred bytes."""
    resealed(path, lambda value: value.update(maps=packed(bytes(3 << 20))))


def endless_latent(path: Path) -> None:
    resealed(path, lambda value: value["background"].update(latent=packed(bytes(300 << 10))))


def bomb_in_an_array(path: Path) -> None:
    """4 MB in 4 kB, of an image that has 3600 bytes."""
    chunk_path(path / "associated-label", (0, 0, 0)).write_bytes(pack_bytes(bytes(4 << 20)))


def pipe(path: Path) -> None:
    """Reading it would wait for ever."""
    shard = largest_shard(path)
    shard.unlink()
    os.mkfifo(shard)


def absurd_index(path: Path) -> None:
    """A sound checksum over an index that claims exabytes."""
    import struct

    from histocodec.formats.container.shard import crc32c

    chunks = opened(path).attributes.shard_side(0) ** 2
    body = struct.pack("<QQ", 0, 2**63) + struct.pack("<QQ", 2**64 - 2, 100) * (chunks - 1)
    largest_shard(path).write_bytes(bytes(100) + body + crc32c(body))


def random_chunks(path: Path) -> None:
    """Sound checksums over noise: the entropy decoder's own business."""
    rng = np.random.default_rng(0)
    fill_shard(path, bytes([50, 12, 16, 16]) + rng.bytes(5000))


def test_hostile_latents_never_give_a_foreign_error(broken: Path) -> None:
    """Any header and any bytes, behind a sound checksum."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        header = bytes(rng.integers(0, [101, 14, 18, 18]).tolist())
        chunk = header + rng.bytes(int(rng.integers(0, 400)))
        fill_shard(broken, chunk)
        with histocodec.open(broken, device="cpu") as slide, pytest.raises(FormatError, match=r"chunk \("):
            slide.read_array(0, 0, 10, 10)
