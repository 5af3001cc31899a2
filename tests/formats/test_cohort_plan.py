"""Planning a cohort: which slides there are, what their containers are called, and how they are encoded."""

import sqlite3
from pathlib import Path

import pytest

from histocodec.errors import FormatError, OutputError, UnsupportedError, UsageError
from histocodec.formats.cohort.find import find_slides
from histocodec.formats.cohort.ledger import Ledger
from histocodec.formats.cohort.plan import make_plan
from histocodec.formats.cohort.policy import Policy, read_policy
from histocodec.sources.synthetic import synthetic_slide
from tests.support.cohorts import CREATED, make_slides, rows
from tests.support.servers import s3
from tests.support.vendors import tissue, write_dicom, write_mrxs, write_svs


def names(*sources: str | Path) -> list[str]:
    """The names of the slides that are found."""
    return [found.name for found in find_slides(sources)]


def policy(tmp_path: Path, text: str) -> Policy:
    """The policy of a TOML text."""
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path)


def write_series(folder: Path, series: str) -> None:
    """A DICOM slide of two levels, a file each."""
    folder.mkdir()
    for instance, size in enumerate(((300, 200), (150, 100)), 1):
        write_dicom(folder / f"{instance}.dcm", tissue(*size), series=series, instance=instance)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder with slides of many kinds, and what lies beside slides."""
    folder = tmp_path / "archive"
    make_slides(folder / "a", 2)
    (folder / "case 1").mkdir()
    write_svs(folder / "case 1" / "one.svs", tissue(300, 200))
    (folder / "mirax").mkdir()
    write_mrxs(folder / "mirax" / "two.mrxs", tissue(256, 256))
    for series in (1, 2):
        write_series(folder / f"dicom{series}", f"1.2.3.{series}")
    (folder / "notes.txt").write_text("no slide")
    (folder / "thumbnail.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "a" / "old.hcz").write_bytes(b"PK")
    (folder / ".hidden.svs").write_bytes(b"")
    return folder


def test_several_files_of_one_slide_are_one_slide(archive: Path) -> None:
    assert sorted(names(archive)) == [
        "a/slide-000", "a/slide-001", "case 1/one", "dicom1", "dicom2", "mirax/two",
    ]  # fmt: skip


def test_slides_are_found_by_folder_pattern_name_and_manifest_once(archive: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "slides.csv"
    manifest.write_text("path;stain\narchive/a/slide-000.tif;HE\n", encoding="utf-8-sig")
    assert names(archive / "a" / "*.tif") == ["slide-000", "slide-001"]
    assert names(str(archive / "**" / "*.svs")) == ["one"]
    assert names(archive / "a" / "slide-001.tif", archive / "a") == ["slide-001", "slide-000"]
    (found,) = find_slides([manifest])
    assert found.source == str(archive / "a" / "slide-000.tif")
    assert found.labels == {"stain": "HE"}


@pytest.mark.parametrize(
    "sources, words",
    [(["nowhere"], "does not exist"), (["*.svs"], "no file fits"), (["https://127.0.0.1:9/x.svs"], "cannot be")],
)
def test_a_source_that_is_not_there_is_refused(sources: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=words) as caught:
        list(find_slides([source if "://" in source else tmp_path / source for source in sources]))
    assert type(caught.value).__module__ == "histocodec.errors"


@pytest.mark.parametrize(
    "text, words",
    [
        ("stain\nHE\n", "must name the slides"),
        ("path,stain\na.tif\n", "line 2.*values"),
        ("path,path\na.tif,b.tif\n", "twice"),
        ("", "is empty"),
        ("path\n\n", None),
        ("path,stain\n,HE\n", "nothing in the column"),
    ],
)
def test_a_damaged_manifest_is_refused(text: str, words: str | None, tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    path.write_text(text, encoding="utf-8")
    if words is None:
        assert list(find_slides([path])) == []
        return
    with pytest.raises(FormatError, match=words):
        list(find_slides([path]))


def test_a_parquet_manifest_says_the_same_as_csv(archive: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    source = str(archive / "a" / "slide-000.tif")
    parquet.write_table(pyarrow.table({"Path": [source], "stain": ["HE"], "level": [2]}), tmp_path / "slides.parquet")
    (found,) = find_slides([tmp_path / "slides.parquet"])
    assert (found.source, dict(found.labels)) == (source, {"stain": "HE", "level": "2"})


def test_a_plan_says_how_large_slides_are_and_when_they_were_planned(archive: Path, tmp_path: Path) -> None:
    report = make_plan([archive], str(tmp_path / "out"), tmp_path / "ledger", Policy())
    assert (report.added, report.known, report.unreadable) == (6, 0, ())
    row = rows(tmp_path / "ledger")[0]
    assert (row.width, row.height, row.mpp_x, row.created, row.state) == (300, 280, 0.5, CREATED, "planned")
    assert row.result == str(tmp_path / "out" / "a" / "slide-000.hcz")
    assert not (tmp_path / "out").exists()


def test_planning_again_adds_what_is_new_only(tmp_path: Path) -> None:
    folder, ledger = tmp_path / "slides", tmp_path / "ledger"
    make_slides(folder, 2)
    make_plan([folder], str(tmp_path / "out"), ledger, Policy(), options={"quality": 30})
    make_slides(folder, 1, start=2)
    report = make_plan([folder], str(tmp_path / "out"), ledger, Policy(), options={"quality": 60})
    assert (report.added, report.known) == (1, 2)
    assert [row.options["quality"] for row in rows(ledger)] == [30, 30, 60]
    with pytest.raises(UsageError, match="is the ledger of"):
        make_plan([folder], str(tmp_path / "elsewhere"), ledger, Policy())


def test_two_slides_never_have_one_container(tmp_path: Path) -> None:
    make_slides(tmp_path / "a", 1)
    make_slides(tmp_path / "b", 1)
    sources = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(UsageError, match="the same container"):
        make_plan(sources, str(tmp_path / "out"), tmp_path / "ledger", Policy())
    assert not (tmp_path / "ledger").exists()
    make_plan([tmp_path], str(tmp_path / "out"), tmp_path / "ledger", Policy())
    assert len(rows(tmp_path / "ledger")) == 2
    case = policy(tmp_path, '[names]\npattern = "{who}.hcz"\n')
    (tmp_path / "m.csv").write_text("path,who\na/slide-000.tif,Anna\nb/slide-000.tif,ANNA\n")
    with pytest.raises(UsageError, match="the same container"):  # where file systems know no case
        make_plan([tmp_path / "m.csv"], str(tmp_path / "out"), tmp_path / "other", case)


def test_a_slide_that_cannot_be_opened_is_in_the_ledger_with_its_error_and_looked_at_again(tmp_path: Path) -> None:
    folder, ledger = tmp_path / "slides", tmp_path / "ledger"
    (good,) = make_slides(folder, 1)
    (folder / "broken.svs").write_bytes(b"no slide")
    (folder / "m.csv").write_text("path\nslide-000.tif\nbroken.svs\ngone.svs\n")
    report = make_plan([folder / "m.csv"], str(tmp_path / "out"), ledger, Policy())
    assert (report.added, len(report.unreadable)) == (1, 2)
    assert {row.source: row.error_kind for row in rows(ledger, "failed")} == {
        str(folder / "broken.svs"): "UnsupportedError",
        str(folder / "gone.svs"): "UsageError",
    }
    (folder / "broken.svs").write_bytes(good.read_bytes())
    report = make_plan([folder / "m.csv"], str(tmp_path / "out"), ledger, Policy())
    assert (report.added, len(report.unreadable), len(rows(ledger))) == (1, 1, 3)


POLICY = """
[encode]
quality = 40
source_name = "hash"

[names]
pattern = "{organ}/{stem}.hcz"

[[rule]]
when = { stain = "ihc*", organ = ["lung", "skin"] }
target_psnr = 38

[[rule]]
when = { stain = "IHC-P53" }
min_psnr = 30
levels = [2, 0]
"""


def test_a_policy_decides_by_labels_and_the_last_rule_wins(tmp_path: Path) -> None:
    decided = policy(tmp_path, POLICY)
    assert decided.options_of({"stain": "HE", "organ": "lung"}) == {"quality": 40, "source_name": "hash"}
    assert decided.options_of({"stain": "IHC-P53", "organ": "Lung"}) == {
        "target_psnr": 38, "source_name": "hash", "min_psnr": 30, "levels": [0, 2],
    }  # fmt: skip
    assert decided.name_of("x/y", {"organ": "lung"}) == "lung/y.hcz"


@pytest.mark.parametrize(
    "text, words",
    [
        ("[encode", "is no TOML"),
        ("[encod]\n", "'encod' is unknown"),
        ("[encode]\ndelete_source = true\n", "'delete_source' is unknown"),
        ("[encode]\nquality = 'high'\n", "allowed is a number"),
        ("[encode]\nquality = 400\n", "0 to 100"),
        ("[encode]\nkeep_label = 1\n", "true or false"),
        ("[encode]\nlevels = [-1]\n", "numbers of levels"),
        ("[encode]\nquality = 1\nratio = 20\n", "exclude each other"),
        ("[[rule]]\nquality = 50\n", "has no `when`"),
        ("[[rule]]\nwhen = { a = [] }\n", "allowed is a text"),
        ("[names]\npattern = '{a.b}.hcz'\n", "allowed are name"),
        ("[names]\npattern = '{a'\n", "is no pattern"),
    ],
)
def test_a_policy_that_says_what_it_cannot_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=words):
        policy(tmp_path, text)


@pytest.mark.parametrize("name", ["../x.hcz", "a/../../x.hcz", "a\nb.hcz", "x.svs", "a\\b.hcz", "."])
def test_a_container_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no name for a container"):
        policy(tmp_path, "[names]\npattern = '{what}'\n").name_of("x", {"what": name})


def test_a_rule_about_a_label_that_no_slide_has_is_a_mistake(tmp_path: Path) -> None:
    make_slides(tmp_path / "slides", 1)
    decided = policy(tmp_path, '[[rule]]\nwhen = { stian = "HE" }\nquality = 1\n')
    with pytest.raises(UsageError, match="'stian', which no slide has"):
        make_plan([tmp_path / "slides"], str(tmp_path / "out"), tmp_path / "ledger", decided)


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no ledger"):
        Ledger.open(tmp_path / "none")
    (tmp_path / "text").write_text("no database, and longer than a header of SQLite" * 10)
    with pytest.raises(UnsupportedError, match="is no ledger"):
        Ledger.open(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(UnsupportedError, match="is no ledger"):
        Ledger.open(tmp_path / "other")
    with pytest.raises(OutputError, match="not replaced"):
        Ledger.make(tmp_path / "other", {})


@pytest.mark.slow
def test_slides_are_found_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bucket" / "archive"
    make_slides(folder / "a", 1, side=600)
    (folder / "m").mkdir()
    write_mrxs(folder / "m" / "two.mrxs", synthetic_slide(256, 256))
    write_series(folder / "d", "1.2.3.1")
    with s3(tmp_path / "bucket") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        report = make_plan(["s3://slides/archive"], "s3://slides/out", tmp_path / "ledger", Policy())
        assert [row.result for row in rows(tmp_path / "ledger")] == [
            "s3://slides/out/a/slide-000.hcz", "s3://slides/out/d.hcz", "s3://slides/out/m/two.hcz",
        ]  # fmt: skip
        assert report.unreadable == ()
        tif, dicom, mirax = rows(tmp_path / "ledger")
        assert (tif.width, tif.height, tif.levels) == (600, 580, 2)
        assert len(dicom.parts) == 2
        assert len(mirax.parts) > 2
        with pytest.raises(UsageError, match="nothing is below it"):
            make_plan(["s3://slides/nothing"], "s3://slides/out", tmp_path / "other", Policy())
