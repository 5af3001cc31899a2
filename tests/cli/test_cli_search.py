"""embed, index, search and umap, one after the other."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histocodec.cli.main import run
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.models.weights import MODELS_VARIABLE
from histocodec.sources.array import ArraySlide
from histocodec.sources.synthetic import synthetic_slide

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def models(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODELS_VARIABLE, str(tiny_file.parent))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """a, b and c, all embedded, and an index of a and b."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MODELS_VARIABLE, str(tiny_file.parent))
        for seed, name in enumerate("abc"):
            slide = ArraySlide(synthetic_slide(512, 512, seed=seed), mpp=0.5)
            options = EncodeOptions(quality=60, model="tiny-0", device="cpu", workers=1)
            encode_slide(slide, folder / f"{name}.zarr", options)
        assert run(["embed", "--workers", "1", *(str(folder / f"{name}.zarr") for name in "abc")]) == 0
        index = str(folder / "an.index")
        assert run(["index", "build", index, str(folder / "a.zarr"), "--label", "organ=lung"]) == 0
        assert run(["index", "add", index, str(folder / "b.zarr"), "--label", "organ=colon"]) == 0
    return folder


def printed(capsys: Captured, *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    result: dict[str, object] = json.loads(capsys.readouterr().out)
    return result


def refused(capsys: Captured, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = run(arguments)
    return code, capsys.readouterr().err


def test_an_image_finds_the_patch_that_it_was_cut_from(capsys: Captured, folder: Path, tmp_path: Path) -> None:
    Image.fromarray(synthetic_slide(512, 512, seed=1)[256:, :256]).save(tmp_path / "query.png")
    query = ("--image", str(tmp_path / "query.png"), "--device", "cpu", "--sheet", str(tmp_path / "sheet.png"))
    result = printed(capsys, "search", str(folder / "an.index"), *query, "-k", "3")
    best = result["patches"][0]  # type: ignore[index]  # JSON
    assert (Path(best["slide"]).name, best["x"], best["y"], best["labels"]) == ("b.zarr", 0, 256, {"organ": "colon"})
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 16 + 3 * (256 + 16)
        shown = np.asarray(sheet)[16 : 16 + 256, 16 : 16 + 256].astype(float)
    assert np.abs(shown - synthetic_slide(512, 512, seed=1)[256:, :256]).mean() < 12


def test_a_query_of_another_resolution_is_noted(capsys: Captured, folder: Path, tmp_path: Path) -> None:
    slide = ArraySlide(synthetic_slide(512, 512, seed=7), mpp=1.0)
    encode_slide(slide, tmp_path / "coarse.zarr", EncodeOptions(60, model="tiny-0", device="cpu", workers=1))
    assert run(["embed", "--workers", "1", str(tmp_path / "coarse.zarr")]) == 0
    for query, said in ((tmp_path / "coarse.zarr", True), (folder / "c.zarr", False)):
        capsys.readouterr()
        assert run(["search", str(folder / "an.index"), "--slide", str(query)]) == 0
        told = capsys.readouterr().err
        assert ("has 1 µm per pixel, but 2 of 2 slides have 0.5 µm" in told) == said


def test_a_sheet_is_not_written_over_another_file(capsys: Captured, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_bytes(b"mine")
    query = ("--slide", str(folder / "c.zarr"), "--region", "0,0,256,256", "--sheet", str(tmp_path / "sheet.png"))
    code, error = refused(capsys, "search", str(folder / "an.index"), *query)
    assert code == 1
    assert "exists already; --overwrite replaces it" in error
    assert (tmp_path / "sheet.png").read_bytes() == b"mine"
    assert run(["search", str(folder / "an.index"), *query, "--device", "cpu", "--overwrite"]) == 0
    assert (tmp_path / "sheet.png").read_bytes() != b"mine"


def test_a_region_looks_with_its_own_patches_and_not_at_its_own_slide(capsys: Captured, folder: Path) -> None:
    query = ("--slide", str(folder / "a.zarr"), "--region", "0,0,256,256")
    result = printed(capsys, "search", str(folder / "an.index"), *query)
    assert result["query_patches"] == 1
    assert {Path(hit["slide"]).name for hit in result["patches"]} == {"b.zarr"}  # type: ignore[attr-defined]  # JSON


def test_a_whole_slide_ranks_slides(capsys: Captured, folder: Path) -> None:
    result = printed(capsys, "search", str(folder / "an.index"), "--slide", str(folder / "c.zarr"))
    slides = result["slides"]
    assert isinstance(slides, list)
    assert {Path(hit["slide"]).name for hit in slides} == {"a.zarr", "b.zarr"}
    assert slides[0]["distance"] <= slides[1]["distance"]


def test_info_has_what_was_added(capsys: Captured, folder: Path) -> None:
    result = printed(capsys, "index", "info", str(folder / "an.index"))
    assert [slide["labels"] for slide in result["slides"]] == [{"organ": "lung"}, {"organ": "colon"}]  # type: ignore[attr-defined]  # JSON
    assert (result["model"], result["problems"]) == ("tiny-0", [])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["an.index"], 2, "one of --image and --slide"),
        (["an.index", "--image", "a.png", "--slide", "a.zarr"], 2, "one of --image and --slide"),
        (["an.index", "--image", "a.png", "--region", "0,0,9,9"], 2, "--region belongs to --slide"),
        (["an.index", "--slide", "a.zarr", "--sheet", "s.png"], 2, "--sheet shows patches"),
        (["an.index", "--slide", "a.zarr", "--region", "9999,9999,9,9"], 2, "no patch of tissue"),
        (["an.index", "--slide", "a.zarr", "--filter", "organ"], 2, "KEY=VALUE"),
        (["an.index", "--slide", "a.zarr", "--filter", "organ=skin"], 2, "organ=colon, organ=lung"),
        (["an.index", "--slide", "a.zarr", "--filter", "organ=lung"], 2, "no slide to search other than"),
        (["a.zarr", "--slide", "a.zarr"], 2, "is not an index"),
    ],
)
def test_a_query_that_makes_no_sense_is_wrong_usage(
    capsys: Captured, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(folder)
    result, error = refused(capsys, "search", *arguments)
    assert result == code
    assert words in error


def test_a_slide_without_embeddings_is_refused(capsys: Captured, folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.zarr"
    options = EncodeOptions(quality=60, model="tiny-0", device="cpu", workers=1)
    encode_slide(ArraySlide(synthetic_slide(300, 300)), bare, options)
    for command in (["index", "add", str(folder / "an.index"), str(bare)],
                    ["search", str(folder / "an.index"), "--slide", str(bare)]):  # fmt: skip
        code, error = refused(capsys, *command)
        assert code == 4
        assert "histocodec embed" in error


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("usearch", ["index", "build", "new.index", "a.zarr", "--approximate"]),
        ("umap", ["umap", "an.index", "plot.png"]),
    ],
)
def test_a_missing_extra_is_named_and_nothing_is_left(
    capsys: Captured, folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, command: list[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    before = sorted(folder.iterdir())
    code, error = refused(capsys, *command)
    assert code == 4
    assert f"pip install 'histocodec[{'search' if package == 'usearch' else package}]'" in error
    assert sorted(folder.iterdir()) == before


def test_umap_draws_and_writes_a_row_for_each_patch(capsys: Captured, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("umap", reason="the extra umap is not installed")
    result = printed(capsys, "umap", str(folder / "an.index"), str(tmp_path / "plot.png"), "--color", "organ")
    assert result["groups"] == 2
    assert len((tmp_path / "plot.csv").read_text().splitlines()) == 1 + result["patches"]  # type: ignore[operator]  # JSON
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.format == "PNG"
