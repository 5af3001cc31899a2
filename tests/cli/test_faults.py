"""A container that is broken, cut short or foreign: one clear error and the right exit code."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import histocodec
from histocodec.cli.main import run
from histocodec.codec.chunk import HyperChunkCodec
from histocodec.formats.container.arrays import chunk_path, pack_values
from histocodec.formats.container.check import latents_check
from histocodec.formats.container.layout import plain_forms, small_arrays
from histocodec.formats.container.read import open_container
from histocodec.models.weights import MODELS_VARIABLE, parse_model
from tests.support.commands import Captured, all_files, decoding, encoding, failure, problems
from tests.support.damage import edited, fill_shard, foreign_weights, largest_shard
from tests.support.tiny import tiny_weights
from tests.support.version2 import change_shard, resealed, shards

REPOSITORY = Path(histocodec.__file__).parents[1]
GZIP_HEADER = 10  # bytes, of which some have no meaning


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
    rng, plain = np.random.default_rng(0), plain_forms(open_container(broken).attributes)
    for name in all_files(broken):
        file = broken / name
        data = file.read_bytes()
        for bit in rng.integers(0, 8 * len(data), 3).tolist():
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            code, found = problems(capsys, broken, "--quick")
            if code == 0:  # a gzip header's time, say: the values are what they were
                assert bit < 8 * GZIP_HEADER, (name, bit)
                assert name.partition("/")[0] in plain, (name, bit)
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


def damages(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What can happen to what decoding needs: the name of what has to be in the message, and the damage."""
    shard = largest_shard(path)
    data = shard.read_bytes()
    yield "latents/0/c/0/0/0", lambda: shard.write_bytes(data[:99])
    yield "latents/0/c/0/0/0", lambda: shard.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    yield "latents/0/c/0/0/0", shard.unlink
    yield "maps", lambda: resealed(path, lambda value: value.update(maps="AAAA"))
    yield "digest", lambda: edited(("attributes.histocodec.normalisation.mean", [1, 2, 3]), seal=False)(path)
    yield "model/c/0", lambda: shutil.rmtree(path / "model")
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


def test_an_absent_chunk_is_missed(capsys: Captured, broken: Path) -> None:
    def drop(chunks: list[bytes | None]) -> None:
        chunks[1] = None

    change_shard(broken, shards(broken)[0], drop)
    code, line = failure(capsys, *decoding(broken))
    assert code == 3
    assert "latents/0/c/0/0/0: chunk 1 is missing" in line


def test_a_sound_shard_of_another_slide_is_refused_when_it_is_read(capsys: Captured, broken: Path) -> None:
    of_this_slide = (broken / "zarr.json").read_bytes()
    quality = open_container(broken).attributes.levels[0].quality
    fill_shard(broken, HyperChunkCodec(tiny_weights()).encode(np.ones((48, 32, 32), np.int8), quality))
    (broken / "zarr.json").write_bytes(of_this_slide)
    code, line = failure(capsys, *decoding(broken))
    assert code == 3
    assert "has latents that were not encoded here: it was altered, or belongs to another place or slide" in line


def test_latents_beyond_their_dtype_are_not_wrapped(capsys: Captured, broken: Path) -> None:
    assert open_container(broken).attributes.levels[0].dtype == "int8"
    values = np.zeros((48, 32, 32), np.int16)
    values[3, 2, 1] = 200
    chunk = HyperChunkCodec(tiny_weights()).encode(values, 50)
    fill_shard(broken, chunk, check=latents_check(values, 50))
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


@pytest.mark.slow
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


def test_a_foreign_embedded_model_is_exit_code_3(capsys: Captured, broken: Path) -> None:
    container = open_container(broken)
    form = small_arrays(container.attributes)["model"]
    values = np.frombuffer(parse_model(foreign_weights(), name="foreign").decoder, np.uint8)
    chunk_path(broken / "model", (0,)).write_bytes(pack_values(values, form))
    code, line = failure(capsys, *decoding(broken))
    assert code == 3
    assert "model/c/0: is not what was written here (its SHA-256 differs)" in line


@pytest.mark.parametrize("command", ["decode", "verify", "info", "encode"])
def test_a_container_from_the_future_is_exit_code_4_and_named(
    capsys: Captured, broken: Path, tiny_file: Path, command: str
) -> None:
    edited(("attributes.histocodec", {"version": 3, "anything": "else"}))(broken)
    given = {
        "decode": decoding(broken), "verify": ("verify", broken), "info": ("info", broken),
        "encode": encoding(broken, broken.parent / "a.zarr", tiny_file),
    }  # fmt: skip
    code, line = failure(capsys, *given[command])
    assert code == 4
    assert "broken.zarr" in line
    assert "version 3, written by a later version of histocodec; this one reads up to version 2" in line
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sound", "plain"])
def test_an_embedded_model_decodes_where_no_weights_are_installed(sound_folder: Path, plain: Path, name: str) -> None:
    path = sound_folder / "sound.zarr" if name == "sound" else plain
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
