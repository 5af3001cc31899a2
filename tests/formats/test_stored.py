"""What an encode is told to store: the size of chunks, the overview, the source's name and SHA-256."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

import histocodec
from histocodec.cli.main import run
from histocodec.errors import UsageError
from histocodec.formats.container.attributes import SourceAttributes
from histocodec.formats.container.read import open_container
from histocodec.formats.decode.verify import verify
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.encode.sampling import TISSUE_CHUNKS, sampled_chunks
from histocodec.formats.encode.scope import Scope, draft_attributes
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff
from tests.support.commands import Captured, encoding, failure
from tests.support.slides import encoded, whole
from tests.support.tiny import TINY_VAE, tiny_vae_model, tiny_weights

SIZE = (700, 600)
CASE, PLAIN = "S24-12345 A1.svs", "lung.svs"  # a name that may tell a case, and one that does not


def info(capsys: Captured, path: Path) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["info", str(path), "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


# --chunk


@pytest.mark.parametrize("options", [{}, {"quality": 10, "min_psnr": 27.0}, {"target_bpp": 8.0}])
def test_a_container_with_chunks_of_256_pixels_is_read_like_any_other(
    tmp_path: Path, tiny_file: Path, options: dict[str, float]
) -> None:
    slide = ArraySlide(synthetic_slide(*SIZE, seed=3))
    chosen: dict[str, object] = {"effort": 0, "overview": None, **options}
    report = encoded(slide, tmp_path / "a.zarr", tiny_file, chunk=256, embed_model=True, **chosen)
    assert bool(report.raised or report.lossless) == ("min_psnr" in options)
    with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:
        attributes = opened.container.attributes
        assert (attributes.chunk, attributes.chunk_side) == (16, 256)
        assert opened.container.tiles(0).shape == (3, 3)
        pixels = whole(opened)
    for x, y, width, height in ((200, 190, 150, 140), (0, 0, 1, 1), (500, 500, 200, 100)):
        with histocodec.open(tmp_path / "a.zarr", device="cpu") as opened:  # cold: a direct read
            assert np.array_equal(opened.read_array(x, y, width, height), pixels[y : y + height, x : x + width])
    assert verify(tmp_path / "a.zarr", against=slide, device="cpu").ok


def test_the_size_of_chunks_changes_no_pixel_where_nothing_is_searched_for(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(synthetic_slide(*SIZE, seed=3))
    found = []
    for chunk in (256, 512):
        path = tmp_path / f"{chunk}.zarr"
        encoded(slide, path, tiny_file, chunk=chunk, effort=0, quality=40, background="code", embed_model=True)
        with histocodec.open(path, device="cpu") as opened:
            found.append(whole(opened))
    assert np.array_equal(*found)


@pytest.mark.parametrize(("chunk", "expected"), [(512, 25), (256, 100)])
def test_choices_are_based_on_as_many_pixels_whatever_the_size_of_chunks(chunk: int, expected: int) -> None:
    """100 chunks of 256 pixels are more than the chunks of 512 that are sampled, but not more than their pixels."""
    slide = ArraySlide(np.tile(synthetic_slide(256, 256, seed=1), (10, 10, 1)))
    options = EncodeOptions(chunk=chunk)
    scope = Scope(slide, (0,), draft_attributes(slide, (0,), (255, 255, 255), options, tiny_weights(), 1))
    assert expected > TISSUE_CHUNKS or chunk == 512
    assert len([sampled for sampled in sampled_chunks(scope) if not sampled.blank]) == expected


@pytest.mark.parametrize("chunk", [0, 128, 255, 300, 1024, -256])
def test_other_sizes_of_chunks_are_refused(chunk: int) -> None:
    with pytest.raises(UsageError, match=f"--chunk {chunk}: 256 or 512 pixels is allowed"):
        EncodeOptions(chunk=chunk)


def test_a_model_whose_latents_are_too_large_for_the_chunk_is_refused(tmp_path: Path) -> None:
    model = tiny_vae_model(tmp_path, TINY_VAE.__class__(**{**vars(TINY_VAE), "stride": 128}))
    with pytest.raises(UsageError, match=r"--chunk 256: model tiny-vae-128 .* needs chunks of 512 or more"):
        encoded(ArraySlide(synthetic_slide(*SIZE)), tmp_path / "a.zarr", model, chunk=256)
    assert not list(tmp_path.glob("a.zarr*"))


# --overview


@pytest.mark.parametrize(("given", "expected"), [(512, (512, 439)), (600, (600, 514)), (4096, (700, 600)), (1, None)])
def test_the_overview_has_the_pixels_that_were_asked_for(
    capsys: Captured, tmp_path: Path, tiny_file: Path, given: int, expected: tuple[int, int] | None
) -> None:
    slide = ArraySlide(synthetic_slide(*SIZE, seed=3))
    encoded(slide, tmp_path / "a.zarr", tiny_file, overview=given, effort=0, quality=30)
    stored = open_container(tmp_path / "a.zarr").attributes.overview
    assert stored is not None
    assert stored == expected or (expected is None and max(stored) < 512)
    assert info(capsys, tmp_path / "a.zarr")["overview"] == list(stored)
    overview = zarr.open_group(tmp_path / "a.zarr", mode="r")["overview"]
    assert isinstance(overview, zarr.Array)
    assert overview.shape == (3, stored[1], stored[0])


def test_no_overview_is_stored_where_none_is_wanted(capsys: Captured, tmp_path: Path, tiny_file: Path) -> None:
    encoded(ArraySlide(synthetic_slide(*SIZE)), tmp_path / "a.zarr", tiny_file, overview=None, effort=0)
    assert open_container(tmp_path / "a.zarr").overview() is None
    assert "ome" not in json.loads((tmp_path / "a.zarr" / "zarr.json").read_bytes())["attributes"]
    assert not (tmp_path / "a.zarr" / "overview").exists()
    assert info(capsys, tmp_path / "a.zarr")["overview"] is None


@pytest.mark.parametrize("overview", [0, -1, 4097])
def test_overviews_of_other_sizes_are_refused(overview: int) -> None:
    with pytest.raises(UsageError, match=f"--overview {overview}: 1 to 4096 pixels or none is allowed"):
        EncodeOptions(overview=overview)


# --source-name


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (PLAIN, {}, PLAIN),
        (CASE, {}, ""),
        ("scan 2024-03-05.svs", {}, ""),
        (CASE, {"keep_private": True}, CASE),
        (CASE, {"source_name": "keep"}, CASE),
        (PLAIN, {"source_name": "drop"}, ""),
        (CASE, {"source_name": "drop", "keep_private": True}, ""),
        (PLAIN, {"source_name": "hash"}, hashlib.sha256(PLAIN.encode()).hexdigest()[:32]),
        (CASE, {"source_name": "hash"}, hashlib.sha256(CASE.encode()).hexdigest()[:32]),
    ],
)
def test_the_name_of_the_source_is_kept_hashed_or_dropped(
    capsys: Captured, tmp_path: Path, tiny_file: Path, name: str, options: dict[str, object], expected: str
) -> None:
    slide = ArraySlide(synthetic_slide(64, 64), name=f"/archive/{name}")
    encoded(slide, tmp_path / "a.zarr", tiny_file, effort=0, **options)
    assert open_container(tmp_path / "a.zarr").attributes.source.name == expected
    assert info(capsys, tmp_path / "a.zarr")["source"]["name"] == expected
    text = (tmp_path / "a.zarr" / "zarr.json").read_text()
    assert "archive" not in text
    assert (name in text) == (expected == name)


def test_a_name_that_repeats_a_private_property_is_dropped(tmp_path: Path, tiny_file: Path) -> None:
    properties = {"aperio.Filename": "DOE^JOHN", "aperio.AppMag": "20.00"}
    for name, expected in (("DOE^JOHN.svs", ""), ("lung 20.00.svs", "lung 20.00.svs")):
        slide = ArraySlide(synthetic_slide(64, 64), name=name, properties=properties)
        encoded(slide, tmp_path / "a.zarr", tiny_file, effort=0, overwrite=True)
        assert open_container(tmp_path / "a.zarr").attributes.source.name == expected


@pytest.mark.parametrize("name", ["scan of J.Doe", "scan.2024-03-05", "1.2.840.20240305"])
def test_a_suffix_of_no_known_kind_is_a_part_of_the_name(tmp_path: Path, tiny_file: Path, name: str) -> None:
    slide = ArraySlide(synthetic_slide(64, 64), name=name)
    encoded(slide, tmp_path / "a.zarr", tiny_file, effort=0, source_name="drop")
    assert open_container(tmp_path / "a.zarr").attributes.source == SourceAttributes("", None, "array")
    assert name.rpartition(".")[2] not in (tmp_path / "a.zarr" / "zarr.json").read_text()


def test_other_ways_to_store_the_name_are_refused() -> None:
    with pytest.raises(UsageError, match="--source-name encrypt: auto, keep, hash, drop is allowed"):
        EncodeOptions(source_name="encrypt")


# --source-sha256


def test_the_sha256_of_a_file_is_stored_on_request(capsys: Captured, tmp_path: Path, tiny_file: Path) -> None:
    write_pyramidal_tiff(tmp_path / "a.tif", synthetic_slide(64, 64))
    digest = hashlib.sha256((tmp_path / "a.tif").read_bytes()).hexdigest()
    for options, expected in (((), None), (("--source-sha256",), digest)):
        given = encoding(tmp_path / "a.tif", tmp_path / "a.zarr", tiny_file, "--overwrite", *options)
        assert run([str(part) for part in given]) == 0
        assert info(capsys, tmp_path / "a.zarr")["source"]["sha256"] == expected


def test_the_sha256_of_an_image_is_stored_anyway(capsys: Captured, tmp_path: Path, tiny_file: Path) -> None:
    Image.fromarray(synthetic_slide(64, 64)).save(tmp_path / "a.png")
    assert run([str(part) for part in encoding(tmp_path / "a.png", tmp_path / "a.zarr", tiny_file)]) == 0
    expected = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert info(capsys, tmp_path / "a.zarr")["source"]["sha256"] == expected


def test_the_sha256_of_a_folder_is_that_of_what_sha256sum_prints(tmp_path: Path, tiny_file: Path) -> None:
    command = shutil.which("sha256sum")
    if command is None:
        pytest.skip("sha256sum is not installed here")
    array = zarr.create_array(tmp_path / "in.zarr", shape=(64, 64, 3), chunks=(32, 32, 3), dtype="uint8")
    array[:] = synthetic_slide(64, 64)
    names = sorted(
        p.relative_to(tmp_path / "in.zarr").as_posix() for p in (tmp_path / "in.zarr").rglob("*") if p.is_file()
    )
    listing = subprocess.run([command, *names], cwd=tmp_path / "in.zarr", capture_output=True, check=True).stdout
    with histocodec.open_slide(tmp_path / "in.zarr") as slide:
        histocodec.encode(slide, tmp_path / "a.zarr", model=str(tiny_file), device="cpu", effort=0, source_sha256=True)
    assert open_container(tmp_path / "a.zarr").attributes.source.sha256 == hashlib.sha256(listing).hexdigest()


def test_what_is_no_file_has_no_sha256(tmp_path: Path, tiny_file: Path) -> None:
    encoded(ArraySlide(synthetic_slide(64, 64), name="a"), tmp_path / "a.zarr", tiny_file, source_sha256=True, effort=0)
    assert open_container(tmp_path / "a.zarr").attributes.source.sha256 is None


# The settings that a container has, and the command line.


def test_the_container_says_what_the_encoder_was_told(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(synthetic_slide(64, 64))
    encoded(slide, tmp_path / "a.zarr", tiny_file)
    encoded(slide, tmp_path / "b.zarr", tiny_file, chunk=256, effort=0, quality=30.5, min_psnr=20.0, levels=(0,))
    found = [open_container(tmp_path / name).attributes.provenance.settings for name in ("a.zarr", "b.zarr")]
    assert found[0] == {"effort": 1}
    assert found[1] == {"chunk": 256, "effort": 0, "quality": 30.5, "min_psnr": 20.0, "levels": [0]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--chunk", "300"), "'300' is not one of '256', '512'"),
        (("--overview", "big"), "'big' is no number of pixels; write 512 or none"),
        (("--overview", "0"), "1 to 4096 pixels or none is allowed"),
        (("--source-name", "encrypt"), "'encrypt' is not one of 'auto', 'keep', 'hash', 'drop'"),
        (("--embed-model", "--model-beside"), "exclude each other"),
    ],
)
def test_wrong_options_are_wrong_usage(
    capsys: Captured, tmp_path: Path, tiny_file: Path, options: tuple[str, ...], words: str
) -> None:
    write_pyramidal_tiff(tmp_path / "a.tif", synthetic_slide(64, 64))
    code, line = failure(capsys, *encoding(tmp_path / "a.tif", tmp_path / "a.zarr", tiny_file, *options))
    assert (code, words in line) == (2, True), line
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
