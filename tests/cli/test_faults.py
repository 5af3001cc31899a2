"""Whatever is broken, cut short, foreign, full or hostile: one clear error, the right exit code, nothing half done."""

import ast
import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

import histocodec
from histocodec.cli.main import run
from histocodec.codec.chunk import HyperChunkCodec
from histocodec.errors import FormatError, HistocodecError
from histocodec.formats.container import read as files
from histocodec.formats.container.arrays import Form, chunk_path, pack_values, write_metadata
from histocodec.formats.container.attributes import MAX_MODEL
from histocodec.formats.container.layout import plain_arrays, shard_path
from histocodec.formats.container.read import Container
from histocodec.formats.container.shard import pack_shard
from histocodec.formats.encode import encode as writer
from histocodec.formats.encode.journal import journal_path, partial_path
from histocodec.models.weights import MODELS_VARIABLE
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff
from tests.support.peak import linux_only
from tests.support.tiny import tiny_weights

Captured = pytest.CaptureFixture[str]
REPOSITORY = Path(histocodec.__file__).parents[1]
SIZE = (1100, 600)  # 3 x 2 chunks, and a level of 275 x 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """With slide.tif and sound.zarr, which carries an ICC profile, a label and its model."""
    folder = tmp_path_factory.mktemp("faults")
    write_pyramidal_tiff(folder / "slide.tif", synthetic_slide(*SIZE, seed=1), mpp=0.5)
    with histocodec.open_slide(folder / "slide.tif") as slide:
        slide.icc_profile = bytes(200)  # type: ignore[misc]  # a plain attribute of every source
        slide.associated = {"label": synthetic_slide(40, 30)}  # type: ignore[misc]
        histocodec.encode(
            slide, folder / "sound.zarr", model=str(tiny_file), device="cpu", embed_model=True, keep_label=True
        )
    return folder


@pytest.fixture
def broken(folder: Path, tmp_path: Path) -> Path:
    """A copy of the sound container, to be broken."""
    return Path(shutil.copytree(folder / "sound.zarr", tmp_path / "broken.zarr"))


@pytest.fixture
def plain(folder: Path, tmp_path: Path, tiny_file: Path) -> Path:
    """Without an embedded model."""
    target = tmp_path / "plain.zarr"
    histocodec.encode(folder / "slide.tif", target, model=str(tiny_file), device="cpu", levels=(0,))
    return target


def failure(capsys: Captured, *arguments: str | Path) -> tuple[int, str]:
    """The exit code, and the only line on stderr; a traceback would be more than one."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert lines, "nothing was said"
    assert "unexpected" not in lines[-1], lines
    return code, lines[-1]


def decoding(container: Path) -> tuple[str | Path, ...]:
    return "decode", container, container.parent / "out.png", "--device", "cpu"


def encoding(source: Path, target: Path, model: Path, *options: str) -> tuple[str | Path, ...]:
    return "encode", source, target, "--model", model, "--device", "cpu", *options


def all_files(path: Path) -> list[str]:
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def problems(capsys: Captured, path: Path, *options: str) -> tuple[int, list[str]]:
    """What `verify` finds; a container that cannot even be opened is one problem."""
    capsys.readouterr()
    code = run(["verify", str(path), "--json", "--device", "cpu", *options])
    printed = capsys.readouterr()
    if not printed.out:
        return code, printed.err.splitlines()
    found: list[str] = json.loads(printed.out)["problems"]
    return code, found


# Broken containers.


def test_a_sound_container_decodes_and_verifies(capsys: Captured, broken: Path) -> None:
    assert run([str(argument) for argument in decoding(broken)]) == 0
    assert problems(capsys, broken) == (0, [])


def test_every_file_cut_short_is_found_and_named(capsys: Captured, broken: Path) -> None:
    for name in all_files(broken):
        file = broken / name
        data = file.read_bytes()
        for size in {0, len(data) // 2, len(data) - 1}:
            file.write_bytes(data[:size])
            code, found = problems(capsys, broken, "--quick")
            assert code in (3, 4) if name == "zarr.json" else code == 3, (name, size)
            assert any(name in problem for problem in found), (name, found)
        file.write_bytes(data)
    assert problems(capsys, broken) == (0, [])


def test_a_flipped_bit_in_any_file_is_found_and_named(capsys: Captured, broken: Path) -> None:
    rng = np.random.default_rng(0)
    for name in all_files(broken):
        file = broken / name
        data = file.read_bytes()
        for bit in rng.integers(0, 8 * len(data), 3).tolist():
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            code, found = problems(capsys, broken, "--quick")
            if name == "integrity/files/zarr.json":  # lists all others, so nothing lists its own metadata
                assert code in (0, 3)
                continue
            assert code in (3, 4) if name == "zarr.json" else code == 3, (name, bit)
            assert any(Path(name).parent.as_posix().strip(".") in problem for problem in found), (name, found)
        file.write_bytes(data)


def test_every_deleted_file_is_found_and_named(capsys: Captured, broken: Path) -> None:
    for name in all_files(broken):
        data = (broken / name).read_bytes()
        (broken / name).unlink()
        code, found = problems(capsys, broken, "--quick")
        assert code == (4 if name == "zarr.json" else 3), name
        assert any(name in problem for problem in found), (name, found)
        (broken / name).write_bytes(data)


def largest_shard(path: Path) -> Path:
    return max((path / "latents").rglob("c/*/*/*"), key=lambda file: file.stat().st_size)


def damages(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What can happen to what decoding needs: the name of what has to be in the message, and the damage."""
    shard = largest_shard(path)
    data = shard.read_bytes()
    yield "latents/0/c/0/0/0", lambda: shard.write_bytes(data[:-1])
    yield "latents/0/c/0/0/0", lambda: shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    yield "latents/0/c/0/0/0", shard.unlink
    yield "tiles/0", lambda: shutil.rmtree(path / "tiles" / "0")
    yield "stats/mean", lambda: (path / "stats/mean/c/0").write_bytes(b"")
    yield "model/weights", lambda: shutil.rmtree(path / "model")
    yield "zarr.json", lambda: (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes()[:-9])


@pytest.mark.parametrize("number", range(7))
def test_decoding_what_is_broken_is_exit_code_3_and_leaves_no_image(
    capsys: Captured, broken: Path, number: int
) -> None:
    named, damage = list(damages(broken))[number]
    damage()
    code, line = failure(capsys, *decoding(broken))
    assert code == 3
    assert named in line
    assert sorted(path.name for path in broken.parent.iterdir()) == ["broken.zarr"]


def fill_shard(path: Path, chunk: bytes, *, absent: tuple[int, int] | None = None) -> None:
    """The same chunk in all places of level 0, which is one shard, but one."""
    attributes = Container.open(path).attributes
    grid, side = attributes.grid(0), range(attributes.shard)
    there = [(r, c) for r in range(grid.chunk_rows) for c in range(grid.chunk_columns) if (r, c) != absent]
    slots = [chunk if (r, c) in there else None for r in side for c in side]
    shard_path(path, 0, 0, 0).write_bytes(pack_shard(slots))


def test_an_absent_chunk_is_missed(capsys: Captured, broken: Path) -> None:
    chunk = HyperChunkCodec(tiny_weights()).encode(np.zeros((48, 32, 32), np.int8), 50)
    fill_shard(broken, chunk, absent=(0, 1))
    code, line = failure(capsys, *decoding(broken))
    assert code == 3
    assert "level 0 chunk (0, 1) is missing from its shard" in line


def test_latents_beyond_their_dtype_are_not_wrapped(capsys: Captured, broken: Path) -> None:
    assert Container.open(broken).attributes.levels[0].dtype == "int8"
    values = np.zeros((48, 32, 32), np.int16)
    values[3, 2, 1] = 200
    fill_shard(broken, HyperChunkCodec(tiny_weights()).encode(values, 50))
    code, line = failure(capsys, *decoding(broken))
    assert code == 3
    assert "values from 0 to 200, beyond int8" in line


# Models.


def test_a_missing_model_is_exit_code_4(capsys: Captured, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, "")
    for command in (decoding(plain), ("verify", plain)):
        code, line = failure(capsys, *command)
        assert code == 4
        assert "'tiny-0'" in line
        assert "not installed" in line
    assert run(["info", str(plain)]) == 0


def test_a_foreign_model_of_the_same_name_is_exit_code_4(
    capsys: Captured, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = foreign_weights()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny-0.safetensors").write_bytes(foreign)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    code, line = failure(capsys, *decoding(plain))
    assert code == 4
    assert "has SHA-256" in line
    assert not (tmp_path / "out.png").exists()


def foreign_weights() -> bytes:
    """Weights that fit just as well, and differ in the last bit of one number."""
    data = bytearray(tiny_weights().data)
    body = 8 + int.from_bytes(data[:8], "little")
    data[body + json.loads(data[8:body])["inverse_gain"]["data_offsets"][0]] ^= 1
    return bytes(data)


def test_a_foreign_embedded_model_is_exit_code_3(capsys: Captured, broken: Path) -> None:
    container = Container.open(broken)
    form = plain_arrays(container.attributes)["model/weights"]
    values = np.frombuffer(foreign_weights(), np.uint8)
    chunk_path(broken / "model" / "weights", (0,)).write_bytes(pack_values(values, form))
    code, line = failure(capsys, *decoding(broken))
    assert code == 3
    assert "not the model that the attributes name by SHA-256" in line


# Sources.


@pytest.fixture
def jpeg_tiff(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(folder / "slide.tif", tmp_path / "slide.tif"))


def test_an_unreadable_tile_is_exit_code_1_and_leaves_nothing(
    capsys: Captured, jpeg_tiff: Path, tiny_file: Path
) -> None:
    with tifffile.TiffFile(jpeg_tiff) as file:
        page = file.pages.first
        offset, size = page.dataoffsets[4], page.databytecounts[4]
    data = bytearray(jpeg_tiff.read_bytes())
    data[offset : offset + size] = bytes(size)
    jpeg_tiff.write_bytes(data)
    target = jpeg_tiff.parent / "a.zarr"
    code, line = failure(capsys, *encoding(jpeg_tiff, target, tiny_file))
    assert code == 1
    assert "slide.tif" in line
    assert sorted(path.name for path in jpeg_tiff.parent.iterdir()) == ["slide.tif"]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_truncated_source_is_refused_and_leaves_nothing(
    capsys: Captured, jpeg_tiff: Path, tiny_file: Path, share: float
) -> None:
    data = jpeg_tiff.read_bytes()
    jpeg_tiff.write_bytes(data[: int(len(data) * share)])
    target = jpeg_tiff.parent / "a.zarr"
    code, line = failure(capsys, *encoding(jpeg_tiff, target, tiny_file))
    assert code in (1, 4)
    assert "slide.tif" in line
    assert sorted(path.name for path in jpeg_tiff.parent.iterdir()) == ["slide.tif"]


def test_a_source_that_fails_late_leaves_the_old_container(capsys: Captured, jpeg_tiff: Path, tiny_file: Path) -> None:
    target = jpeg_tiff.parent / "a.zarr"
    assert run([str(one) for one in encoding(jpeg_tiff, target, tiny_file)]) == 0
    before = {name: (target / name).read_bytes() for name in all_files(target)}
    data = jpeg_tiff.read_bytes()
    jpeg_tiff.write_bytes(data[: len(data) // 2])
    code, _ = failure(capsys, *encoding(jpeg_tiff, target, tiny_file, "--overwrite"))
    assert code in (1, 4)
    assert {name: (target / name).read_bytes() for name in all_files(target)} == before
    assert sorted(path.name for path in jpeg_tiff.parent.iterdir()) == ["a.zarr", "slide.tif"]


def test_a_directory_that_is_no_slide_is_exit_code_4(capsys: Captured, tmp_path: Path, tiny_file: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("hello")
    for command in (encoding(tmp_path / "photos", tmp_path / "a.zarr", tiny_file), decoding(tmp_path / "photos")):
        code, line = failure(capsys, *command)
        assert code == 4
        assert "photos" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_a_source_that_does_not_exist_is_exit_code_2(capsys: Captured, tmp_path: Path, tiny_file: Path) -> None:
    code, line = failure(capsys, *encoding(tmp_path / "none.svs", tmp_path / "a.zarr", tiny_file))
    assert code == 2
    assert "none.svs" in line
    assert list(tmp_path.iterdir()) == []


# Targets.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if mount is None or os.geteuid() != 0 or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_exit_code_1_and_what_is_left_can_be_resumed(
    capsys: Captured, folder: Path, small_disk: Path, tiny_file: Path
) -> None:
    code, line = failure(capsys, *encoding(folder / "slide.tif", small_disk / "a.zarr", tiny_file))
    assert code == 1
    assert "No space left on device" in line
    assert sorted(path.name for path in small_disk.iterdir()) == ["a.zarr.journal", "a.zarr.partial"]
    with pytest.raises(HistocodecError):
        Container.open(partial_path(small_disk / "a.zarr"))


@pytest.mark.parametrize("after", [0, 2, 15, 40])
def test_a_disk_that_fills_at_any_write_leaves_what_can_be_resumed(
    capsys: Captured, folder: Path, tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    target, real, left = tmp_path / "a.zarr", os.fsync, [after]

    def full(descriptor: int) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        real(descriptor)

    given = encoding(folder / "slide.tif", target, tiny_file)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, line = failure(capsys, *given)
    assert code == 1
    assert "No space left on device" in line
    assert not target.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert run([*map(str, given), "--resume"]) == 0
    assert problems(capsys, target, "--quick") == (0, [])
    assert not journal_path(target).exists()


def test_a_folder_that_may_not_be_written_to_is_exit_code_1(
    capsys: Captured, folder: Path, tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.access(locked, os.W_OK):  # root may write anywhere
        real = os.open

        def refused(path: Any, *arguments: Any, **options: Any) -> int:
            if str(path).startswith(str(locked)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, "open", refused)
    code, line = failure(capsys, *encoding(folder / "slide.tif", locked / "a.zarr", tiny_file))
    assert code == 1
    assert "locked/a.zarr" in line
    assert "Permission denied" in line
    assert list(locked.iterdir()) == []


# Hostile containers. Each is opened in a process of its own, whose memory is limited.

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
def test_hostile_containers_cost_little_memory_and_give_our_errors(folder: Path, tmp_path: Path) -> None:
    names = [name for name, _ in hostile()]
    for name, change in hostile():
        change(Path(shutil.copytree(folder / "sound.zarr", tmp_path / name)))
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(folder / "sound.zarr"), *(str(tmp_path / name) for name in names)],
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
        ("huge-overview", edited(("attributes.histocodec.overview", [2**20, 2**20]))),
        ("deep-json", lambda path: (path / "zarr.json").write_text("[" * 100_000)),
        ("many-values", lambda path: (path / "zarr.json").write_text("[" + "{}," * 600_000 + "0]")),
        ("long-and-thin", long_and_thin),
        ("many-levels", many_levels),
        ("endless-listing", endless_listing),
        ("pipe", pipe),
        ("absurd-index", absurd_index),
        ("random-chunks", random_chunks),
        ("inflated-model", inflated_model),  # 256 MiB, twice while it is unpacked
    ]


def edited(*changes: tuple[str, object]) -> Callable[[Path], object]:
    """Sets fields of the root's metadata, given as a.b.0.c."""

    def change(path: Path) -> None:
        written = json.loads((path / "zarr.json").read_text())
        for name, value in changes:
            *parents, last = name.split(".")
            node = written
            for key in parents:
                node = node[int(key) if isinstance(node, list) else key]
            node[last] = value
        (path / "zarr.json").write_text(json.dumps(written))

    return change


def hollow(path: Path, **changes: Any) -> None:
    """All metadata as the changed attributes want it, and every map of zeros, which pack a thousand to one."""
    attributes = replace(Container.open(path).attributes, **changes)
    for level in range(len(attributes.levels)):
        shutil.rmtree(path / "latents" / str(level), ignore_errors=True)
    files.create_skeleton(path, attributes)
    for name, form in plain_arrays(attributes).items():
        if name.split("/")[0] in ("tiles", "quality", "psnr", "integrity"):
            chunk = chunk_path(path / name, (0,) * len(form.shape))
            chunk.parent.mkdir(parents=True, exist_ok=True)
            chunk.write_bytes(pack_values(np.zeros(form.shape, form.dtype), form))
            write_metadata(path / name, form.metadata())


def long_and_thin(path: Path) -> None:
    """One row of chunks in shards of 32 rows."""
    level = Container.open(path).attributes.levels[0]
    hollow(path, chunk=4, shard=32, levels=(replace(level, width=64 * 2**20, height=1),))


def many_levels(path: Path) -> None:
    """64 levels, and each chunk in a shard of its own."""
    level = Container.open(path).attributes.levels[0]
    hollow(path, chunk=4, shard=1, levels=(replace(level, width=64 * 1024, height=64),) * 64)


def inflated_model(path: Path) -> None:
    attributes = Container.open(path).attributes
    changed = replace(attributes, model=replace(attributes.model, embedded=MAX_MODEL))
    files.create_skeleton(path, changed)
    form = plain_arrays(changed)["model/weights"]
    chunk_path(path / "model/weights", (0,)).write_bytes(pack_values(np.zeros(form.shape, np.uint8), form))
    write_metadata(path / "model/weights", form.metadata())


def endless_listing(path: Path) -> None:
    form = Form((64 << 20,), "uint8")
    values = np.full(form.shape, ord("\n"), np.uint8)
    chunk_path(path / "integrity/files", (0,)).write_bytes(pack_values(values, form))
    write_metadata(path / "integrity/files", form.metadata())


def pipe(path: Path) -> None:
    """Reading it would wait for ever."""
    shard = largest_shard(path)
    shard.unlink()
    os.mkfifo(shard)


def absurd_index(path: Path) -> None:
    """A sound checksum over an index that claims exabytes."""
    import struct

    from histocodec.formats.container.shard import crc32c

    chunks = Container.open(path).attributes.shard ** 2
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


# What appears, vanishes or comes from elsewhere.


def test_a_source_that_vanishes_is_exit_code_1_and_is_not_encoded_as_black(
    capsys: Captured, tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that Zarr does not find reads as its fill value."""
    source = tmp_path / "slide.zarr"
    zarr.create_array(source, data=synthetic_slide(600, 400, seed=3), chunks=(100, 100, 3))
    real = writer.tissue_stats

    def and_then_nothing(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        shutil.rmtree(source)
        return found

    monkeypatch.setattr(writer, "tissue_stats", and_then_nothing)
    code, line = failure(capsys, *encoding(source, tmp_path / "a.zarr", tiny_file, "--levels", "0"))
    assert code == 1
    assert "slide.zarr" in line
    assert not (tmp_path / "a.zarr").exists()


def test_a_source_that_changes_while_it_is_read_is_exit_code_1(
    capsys: Captured, jpeg_tiff: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer.tissue_stats

    def and_then_later(*given: Any, **options: Any) -> Any:
        os.utime(jpeg_tiff, ns=(0, 7))
        return real(*given, **options)

    monkeypatch.setattr(writer, "tissue_stats", and_then_later)
    code, line = failure(capsys, *encoding(jpeg_tiff, jpeg_tiff.parent / "a.zarr", tiny_file))
    assert code == 1
    assert "slide.tif: changed or vanished while it was read" in line
    assert not (jpeg_tiff.parent / "a.zarr").exists()


@pytest.mark.parametrize("command", ["decode", "verify", "info", "encode"])
def test_a_container_from_the_future_is_exit_code_4_and_named(
    capsys: Captured, broken: Path, tiny_file: Path, command: str
) -> None:
    edited(("attributes.histocodec", {"version": 2, "anything": "else"}))(broken)
    given = {
        "decode": decoding(broken), "verify": ("verify", broken), "info": ("info", broken),
        "encode": encoding(broken, broken.parent / "a.zarr", tiny_file),
    }  # fmt: skip
    code, line = failure(capsys, *given[command])
    assert code == 4
    assert "broken.zarr" in line
    assert "version 2, written by a later version of histocodec; this one reads version 1" in line
    assert sorted(path.name for path in broken.parent.iterdir()) == ["broken.zarr"]


WITHOUT_MODELS = """
import sys
from pathlib import Path
from histocodec.models import weights
weights.model_folders = lambda: [Path(sys.argv[1]).parent / "nothing"]
import histocodec
with histocodec.open(sys.argv[1], device="cpu") as slide:
    print(slide.model_id, slide.read_array(0, 0, 64, 64).std() > 0, slide.latents(0)[:, :4, :4].shape)
"""


@pytest.mark.parametrize("name", ["sound", "plain"])
def test_an_embedded_model_decodes_where_no_weights_are_installed(folder: Path, plain: Path, name: str) -> None:
    path = folder / "sound.zarr" if name == "sound" else plain
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MODELS, str(path)], capture_output=True, text=True, cwd=REPOSITORY, timeout=100
    )
    if name == "plain":
        assert "MissingModelError" in done.stderr
    else:
        assert done.stdout.split(maxsplit=2) == ["tiny-0", "True", "(48, 4, 4)\n"], done.stderr


def test_an_associated_image_whose_name_leads_elsewhere_is_refused(capsys: Captured, broken: Path) -> None:
    edited(("attributes.histocodec.associated.0.name", "../../elsewhere"))(broken)
    code, line = failure(capsys, *decoding(broken))
    assert code == 3
    assert "associated[0].name: found '../../elsewhere'" in line


def test_a_listing_that_leads_elsewhere_is_refused(capsys: Captured, broken: Path) -> None:
    for name in ("../secret", "/etc/hostname", "a/../../secret"):
        text = np.frombuffer(f"{'0' * 64}  {name}\n".encode(), np.uint8)
        form = Form(text.shape, "uint8")
        chunk_path(broken / "integrity/files", (0,)).write_bytes(pack_values(text, form))
        write_metadata(broken / "integrity/files", form.metadata())
        code, found = problems(capsys, broken, "--quick")
        assert code == 3
        assert any("line 1 is not a SHA-256, two spaces and a file's name" in problem for problem in found)


def test_a_listing_that_leaves_out_a_file_is_found(capsys: Captured, broken: Path) -> None:
    """Its line gone, nothing would be known of the file."""
    chunk = chunk_path(broken / "integrity/files", (0,))
    lines = gzip.decompress(chunk.read_bytes()).splitlines(keepends=True)
    text = np.frombuffer(b"".join(line for line in lines if not line.endswith(b"  tiles/0/c/0/0\n")), np.uint8)
    form = Form(text.shape, "uint8")
    chunk.write_bytes(pack_values(text, form))
    write_metadata(broken / "integrity/files", form.metadata())
    assert problems(capsys, broken, "--quick") == (3, [f"{broken}/integrity/files: does not list tiles/0/c/0/0"])


CARRIES_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy"}


def test_no_module_reads_what_can_carry_code() -> None:
    """Nothing is unpickled or executed. torch.load is for the checkpoints of training alone, and without code."""
    loads = []
    folders = [REPOSITORY / name for name in ("histocodec", "formats", "cli", "benchmarks")]
    for file in {file for folder in folders for file in folder.rglob("*.py")}:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not {name.split(".")[0] for name in names} & CARRIES_CODE, file
            if isinstance(node, ast.Call):
                called, options = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
                assert called not in ("eval", "exec"), file
                assert options.get("allow_pickle", "False") == "False", file
                if called in ("torch.load", "load_object"):
                    loads.append((file.relative_to(REPOSITORY).as_posix(), options.get("weights_only")))
    assert sorted(loads) == [("histocodec/train/loop.py", "True"), ("histocodec/train/vae.py", "True")]
