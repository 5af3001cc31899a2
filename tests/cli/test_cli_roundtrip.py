"""The commands that need a model, with a tiny one: encode, info, decode and verify, one after the other."""

import json
import shutil
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

import histocodec
from histocodec.cli.main import run
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff
from histocodec.text import jsonable
from tests.support.damage import largest_shard
from tests.support.tiny import tiny_model

Captured = pytest.CaptureFixture[str]
SIZE = (1500, 1100)
# What DESIGN promises to programs that read the JSON of `encode`.
PROMISED = {
    "bytes", "payload_bytes", "width", "height", "bpp", "ratio_raw", "ratio_source_file", "psnr", "chunks",
    "seconds", "megapixels_per_second", "device", "model",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With slide.tif, a tiny model and slide.zarr."""
    folder = tmp_path_factory.mktemp("roundtrip")
    write_pyramidal_tiff(folder / "slide.tif", synthetic_slide(*SIZE, seed=1), mpp=0.5)
    tiny_model(folder)
    assert run(encoding(folder, "slide.zarr")) == 0
    return folder


def encoding(folder: Path, target: str, *options: str) -> list[str]:
    model = str(folder / "tiny-0.safetensors")
    given = ["encode", str(folder / "slide.tif"), str(folder / target), "--model", model, "--device", "cpu"]
    return [*given, "--embed-model", *options]


def json_of(capsys: Captured, *arguments: str) -> dict[str, object]:
    """The one object on stdout; stderr, which is no terminal here, stays empty."""
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    value: dict[str, object] = json.loads(printed.out)
    return value


def failure(capsys: Captured, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = run(arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return code, line


def whole(folder: Path) -> np.ndarray:
    with histocodec.open(folder / "slide.zarr", device="cpu") as slide:
        return slide.read_array(0, 0, *SIZE)


# encode


@pytest.mark.slow
def test_encode_prints_the_promised_fields_which_agree(capsys: Captured, folder: Path) -> None:
    report = json_of(capsys, *encoding(folder, "json.zarr"))
    assert set(report) >= PROMISED
    assert (report["width"], report["height"]) == SIZE
    files = sum(file.stat().st_size for file in (folder / "json.zarr").rglob("*") if file.is_file())
    assert report["bytes"] == files
    assert report["bpp"] == pytest.approx(8 * files / (SIZE[0] * SIZE[1]))
    assert report["ratio_source_file"] == pytest.approx((folder / "slide.tif").stat().st_size / files)


@pytest.mark.slow
def test_encode_says_all_three_ratios_to_people(capsys: Captured, folder: Path) -> None:
    capsys.readouterr()
    assert run(encoding(folder, "text.zarr", "--quality", "30", "--levels", "0")) == 0
    text = capsys.readouterr().out
    assert text.count("1:") >= 3
    assert "1 level" in text
    stored = json_of(capsys, "info", str(folder / "text.zarr"))["levels"][0]["quality"]  # type: ignore[index]
    equivalent = "" if stored == 30 else ", on this slide equivalent to the requested 30"
    assert f"quality {stored}{equivalent}\n" in text


@pytest.mark.slow
def test_a_floor_is_held_and_reported(capsys: Captured, folder: Path) -> None:
    report = json_of(capsys, *encoding(folder, "floor.zarr", "--levels", "0", "--quality", "10", "--min-psnr", "27"))
    assert isinstance(report["worst_psnr"], float)
    assert report["worst_psnr"] >= 27
    assert report["raised"] or report["lossless"]
    levels = json_of(capsys, "info", str(folder / "floor.zarr"))["levels"]
    assert isinstance(levels, list)
    assert [(level["raised"], level["lossless"]) for level in levels] == [(report["raised"], report["lossless"])]


def test_encode_leaves_an_existing_container_alone(capsys: Captured, folder: Path) -> None:
    before = (folder / "slide.zarr" / "zarr.json").read_bytes()
    code, line = failure(capsys, *encoding(folder, "slide.zarr"))
    assert code == 1
    assert "--overwrite" in line
    assert (folder / "slide.zarr" / "zarr.json").read_bytes() == before


@pytest.mark.parametrize("options", [("--quality", "3", "--ratio", "5"), ("--target-bpp", "1", "--target-psnr", "30")])
def test_rate_options_exclude_each_other(capsys: Captured, folder: Path, options: tuple[str, ...]) -> None:
    code, line = failure(capsys, *encoding(folder, "none.zarr", *options))
    assert code == 2
    assert "exclude each other" in line
    assert not (folder / "none.zarr").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--ratio", "0.5"), ("--ratio", "nan"), ("--min-psnr", "5"), ("--min-psnr", "nan"),
        ("--target-psnr", "-3"), ("--target-bpp", "0"),
        ("--overwrite", "--resume"), ("--levels", "0,9"),
    ],
)  # fmt: skip
def test_senseless_options_are_wrong_usage(capsys: Captured, folder: Path, options: tuple[str, ...]) -> None:
    code, _ = failure(capsys, *encoding(folder, "none.zarr", *options))
    assert code == 2
    assert not (folder / "none.zarr").exists()


def test_a_missing_model_is_exit_code_4(capsys: Captured, folder: Path) -> None:
    source, target = str(folder / "slide.tif"), str(folder / "none.zarr")
    code, line = failure(capsys, "encode", source, target, "--model", "no-such-model")
    assert code == 4
    assert "no-such-model" in line
    assert not (folder / "none.zarr").exists()


# info


def test_info_describes_a_container(capsys: Captured, folder: Path) -> None:
    facts = json_of(capsys, "info", str(folder / "slide.zarr"))
    assert (facts["width"], facts["height"], facts["model"]) == (*SIZE, "tiny-0")
    assert run(["info", str(folder / "slide.zarr")]) == 0
    text = capsys.readouterr().out
    assert "1500 x 1100" in text
    assert "tiny-0" in text
    assert "{" not in text


# decode


def test_a_region_is_the_crop_of_the_whole(capsys: Captured, folder: Path) -> None:
    out = folder / "region.png"
    result = json_of(
        capsys,
        "decode",
        str(folder / "slide.zarr"),
        str(out),
        "--region",
        "400,300,333,257",
        "--device",
        "cpu",
    )
    assert (result["width"], result["height"], result["levels"]) == (333, 257, 1)
    assert result["mpp"] == [0.5, 0.5]
    with Image.open(out) as image:
        assert np.array_equal(np.asarray(image), whole(folder)[300:557, 400:733])


def test_a_region_beyond_the_edge_is_filled_and_one_outside_is_refused(capsys: Captured, folder: Path) -> None:
    source = str(folder / "slide.zarr")
    assert run(["decode", source, str(folder / "edge.npy"), "--region", "-20,1000,100,200"]) == 0
    pixels = np.load(folder / "edge.npy")
    assert pixels.shape == (200, 100, 3)
    assert np.array_equal(pixels[:100, 20:], whole(folder)[1000:1100, :80])
    assert (pixels[:, :20] == pixels[0, 0]).all()
    assert (pixels[100:] == pixels[0, 0]).all()
    for box in ("1500,0,10,10", "0,1100,10,10", "-10,-10,10,10"):
        code, line = failure(capsys, "decode", source, str(folder / "none.npy"), "--region", box)
        assert code == 2
        assert "outside" in line
    assert not (folder / "none.npy").exists()


def test_a_region_of_a_reduced_level_starts_at_level_0_pixels(folder: Path) -> None:
    out = folder / "low.npy"
    assert run(["decode", str(folder / "slide.zarr"), str(out), "--region", "400,200,64,48", "--level", "1"]) == 0
    with histocodec.open(folder / "slide.zarr", device="cpu") as slide:
        assert np.array_equal(np.load(out), slide.read_array(400, 200, 64, 48, level=1))


def test_a_whole_slide_becomes_a_pyramid_for_openslide(capsys: Captured, folder: Path) -> None:
    out = folder / "decoded.tif"
    result = json_of(capsys, "decode", str(folder / "slide.zarr"), str(out), "--jpeg-quality", "98")
    with openslide.OpenSlide(out) as slide:
        assert slide.level_dimensions == (SIZE, (375, 275))
        assert result["levels"] == 2
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, rel=1e-6)
        pixels = np.asarray(slide.read_region((0, 0), 0, SIZE))[..., :3].astype(float)
    assert np.sqrt(np.mean((pixels - whole(folder)) ** 2)) < 3


def test_a_whole_level_and_a_whole_resolution_become_one_image(capsys: Captured, folder: Path) -> None:
    source = str(folder / "slide.zarr")
    assert run(["decode", source, str(folder / "level.png"), "--level", "1"]) == 0
    with Image.open(folder / "level.png") as image:
        assert image.size == (375, 275)
    result = json_of(capsys, "decode", source, str(folder / "mpp.jpg"), "--mpp", "1")
    assert (result["width"], result["height"], result["mpp"]) == (750, 550, [1.0, 1.0])
    with Image.open(folder / "mpp.jpg") as image:
        assert image.size == (750, 550)


def test_overwriting_is_asked_for(capsys: Captured, folder: Path) -> None:
    arguments = ["decode", str(folder / "slide.zarr"), str(folder / "twice.npy"), "--region", "0,0,8,8"]
    assert run(arguments) == 0
    assert failure(capsys, *arguments)[0] == 1
    assert run([*arguments, "--overwrite"]) == 0


def test_what_is_no_container_cannot_be_decoded(capsys: Captured, folder: Path) -> None:
    assert failure(capsys, "decode", str(folder / "missing.zarr"), str(folder / "none.png"))[0] == 2
    code, line = failure(capsys, "decode", str(folder / "slide.tif"), str(folder / "none.png"))
    assert code == 4
    assert "slide.tif" in line
    assert not (folder / "none.png").exists()


def test_a_level_that_does_not_exist_is_wrong_usage(capsys: Captured, folder: Path) -> None:
    arguments = ("decode", str(folder / "slide.zarr"), str(folder / "none.png"), "--level", "7")
    code, line = failure(capsys, *arguments)
    assert code == 2
    assert "0 to 1" in line


# verify


def test_a_sound_container_verifies_against_its_source(capsys: Captured, folder: Path) -> None:
    source, original = str(folder / "slide.zarr"), str(folder / "slide.tif")
    report = json_of(capsys, "verify", source, "--against", original, "--device", "cpu")
    assert report["ok"] is True
    assert isinstance(report["psnr"], float)
    assert json_of(capsys, "verify", source, "--quick")["ok"] is True


@pytest.mark.slow
def test_a_slide_without_a_pyramid_verifies_against_itself(capsys: Captured, folder: Path, tmp_path: Path) -> None:
    Image.fromarray(synthetic_slide(1300, 200, seed=2)).save(tmp_path / "flat.png")
    flat, target = str(tmp_path / "flat.png"), str(tmp_path / "flat.zarr")
    model = str(folder / "tiny-0.safetensors")
    assert run(["encode", flat, target, "--model", model, "--embed-model"]) == 0
    assert json_of(capsys, "verify", target, "--against", flat)["ok"] is True


@pytest.mark.parametrize("quick", [(), ("--quick",)])
def test_a_flipped_bit_is_exit_code_3(capsys: Captured, folder: Path, tmp_path: Path, quick: tuple[str, ...]) -> None:
    broken = tmp_path / "broken.zarr"
    shutil.copytree(folder / "slide.zarr", broken)
    shard = largest_shard(broken)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    capsys.readouterr()
    assert run(["verify", str(broken), "--json", *quick]) == 3
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["ok"] is False
    assert report["problems"]
    assert "problem" in printed.err
    assert run(["verify", str(broken), *quick]) == 3
    assert "DAMAGED" in capsys.readouterr().out


# The façade, and a container as a source.


def test_the_facade_encodes_paths_and_opened_slides(folder: Path) -> None:
    model = str(folder / "tiny-0.safetensors")
    pixels = synthetic_slide(300, 200)
    report = histocodec.encode(
        ArraySlide(pixels), folder / "array.zarr", model=model, quality=60, device="cpu", embed_model=True
    )
    assert isinstance(report, histocodec.EncodeReport)
    assert isinstance(jsonable(report), dict)
    with histocodec.open(folder / "array.zarr") as slide:
        assert isinstance(slide, histocodec.Slide)
        assert slide.read_array(0, 0, 300, 200).shape == pixels.shape
    with pytest.raises(histocodec.OutputError):
        histocodec.encode(folder / "slide.tif", folder / "array.zarr", model=model)


@pytest.mark.slow
def test_a_container_can_be_compressed_again(capsys: Captured, folder: Path) -> None:
    source, target = str(folder / "slide.zarr"), str(folder / "again.zarr")
    model = str(folder / "tiny-0.safetensors")
    report = json_of(capsys, "encode", source, target, "--model", model, "--quality", "20")
    assert (report["width"], report["height"]) == SIZE


# demo


@pytest.mark.slow
def test_the_demo_runs_and_leaves_a_picture(
    capsys: Captured, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(folder))
    arguments = [
        "demo",
        "--model",
        "tiny-0",
        "--size",
        "640",
        "--out",
        str(tmp_path / "demo"),
        "--device",
        "cpu",
    ]
    assert run([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] is True
    assert set(report["encoded"]) >= PROMISED
    with Image.open(tmp_path / "demo" / "side-by-side.png") as image:
        assert image.width > 3 * 512
    assert run([*arguments, "--slide", str(folder / "slide.tif")]) == 0  # a second time, over the first
    text = capsys.readouterr().out
    assert "side-by-side.png" in text
    assert text.count("1:") >= 3
