"""Attributes that were changed on purpose get their digest again; what was not to be known is in no byte any more."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import histocodec
from histocodec.cli.main import run
from histocodec.errors import FormatError, OutputError, UnsupportedError, UsageError
from histocodec.formats.container.pack import pack, write_zip
from histocodec.formats.container.read import open_container
from histocodec.formats.decode.verify import verify
from histocodec.formats.encode.options import EncodeOptions
from histocodec.formats.seal import Removals, seal
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.commands import Captured, failure
from tests.support.containers import written

NAME = "S24-12345.svs"
PROPERTIES = {"aperio.User": "jane.doe", "aperio.AppMag": "20", "aperio.Patient": "John Doe", "tiff.Software": "x"}
LABEL, MACRO = (200, 30, 60), (30, 200, 60)  # the colours of whole images; no rotation of each other
Json = dict[str, Any]


@pytest.fixture
def container(tmp_path: Path, tiny_file: Path) -> Path:
    """Keeps everything that a slide says of a patient."""
    slide = ArraySlide(synthetic_slide(300, 200, seed=5), name=NAME, properties=PROPERTIES, icc_profile=b"profile")
    slide.associated = {"label": np.full((30, 20, 3), LABEL, np.uint8), "macro": np.full((20, 30, 3), MACRO, np.uint8)}
    options = EncodeOptions(
        quality=40, effort=0, model=str(tiny_file), embed_model=True, device="cpu", overview=None,
        keep_label=True, keep_macro=True, keep_private=True, source_name="keep",
    )  # fmt: skip
    histocodec.encode(slide, tmp_path / "a.hc.zarr", **vars(options))
    return tmp_path / "a.hc.zarr"


def attributes(container: Path) -> Json:
    found: Json = json.loads((container / "zarr.json").read_bytes())["attributes"]["histocodec"]
    return found


def edit(container: Path, change: Callable[[Json], object]) -> None:
    """What an editor does: the file is changed, and formatted in another way."""
    document = json.loads((container / "zarr.json").read_bytes())
    change(document["attributes"]["histocodec"])
    (container / "zarr.json").write_text(json.dumps(document, indent=4))


def everything(container: Path) -> bytes:
    """All bytes of all files, those of plain arrays unpacked."""
    files = [path.read_bytes() for path in container.rglob("*") if path.is_file()]
    return b"\n".join(zlib.decompress(data, 31) if data.startswith(b"\x1f\x8b") else data for data in files)


def contents(container: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in container.rglob("*") if path.is_file()}


# Edited by hand.


def test_an_edited_container_is_refused_until_it_is_sealed(container: Path) -> None:
    before = attributes(container)["digest"]
    pixels = histocodec.open(container, device="cpu").read_array(0, 0, 300, 200)
    edit(container, lambda a: a["source"].pop("name"))
    with pytest.raises(FormatError, match="`histocodec seal` recomputes it"):
        histocodec.open(container)
    report = seal(container)
    assert (report.previous_digest, report.removed) == (before, ())
    assert report.digest == attributes(container)["digest"] != before
    assert np.array_equal(histocodec.open(container, device="cpu").read_array(0, 0, 300, 200), pixels)
    assert verify(container, device="cpu").ok


def test_sealing_what_was_not_edited_writes_nothing(container: Path) -> None:
    before, written_at = contents(container), (container / "zarr.json").stat().st_mtime_ns
    report = seal(container)
    assert report.previous_digest == report.digest
    assert contents(container) == before
    assert (container / "zarr.json").stat().st_mtime_ns == written_at


def test_a_digest_that_is_missing_or_nonsense_is_replaced(container: Path) -> None:
    digest = attributes(container)["digest"]
    edit(container, lambda a: a.pop("digest"))
    report = seal(container)
    assert (report.previous_digest, report.digest) == (None, digest)
    edit(container, lambda a: a.update(digest="nonsense"))
    assert seal(container).digest == digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.update(unknown=1), "field 'unknown' is unknown"),
        (lambda a: a.pop("uid"), "field 'uid' is missing"),
        (lambda a: a.update(mpp=[0, 0]), "mpp"),
        (lambda a: a.update(properties={"a": 1}), "properties"),
        (lambda a: a.update(extensions={"org.example": 2**60}), "cannot be written as JSON"),
        (lambda a: a["levels"][0].update(quality=41), "latents/0/zarr.json"),
        (lambda a: a["levels"][0].update(height=1000), "zarr.json"),
        (lambda a: a["icc"].update(sha256="0" * 64), "icc"),
        (lambda a: a.update(chunk=20), "zarr.json"),
    ],
)
def test_attributes_that_could_not_be_read_again_are_not_sealed(
    container: Path, change: Callable[[Json], object], words: str
) -> None:
    edit(container, change)
    before = contents(container)
    with pytest.raises(FormatError, match=words):
        seal(container)
    assert contents(container) == before


def test_whatever_a_member_is_sealing_is_one_clear_error_or_can_be_read(container: Path) -> None:
    original, everything_off = attributes(container), Removals(name=True, private=True)
    shutil.copytree(container, container.with_name("whole"))
    sealed = 0
    for name in original:
        for value in (None, True, 7, -1.5, "x", [], ["x"], [{}], {}, {"name": 7}, {"x": []}):
            shutil.copytree(container.with_name("whole"), container, dirs_exist_ok=True)
            edit(container, lambda a: a.update({name: value}))  # noqa: B023  # runs at once
            try:
                seal(container, everything_off)
            except (FormatError, UnsupportedError):
                continue
            assert open_container(container).attributes.provenance.digest
            sealed += 1
    assert sealed > 10  # what may be anything


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b'{"attributes": 7}', b'{"attributes": {"histocodec": []}}'])
def test_metadata_that_are_none_are_one_clear_error(container: Path, data: bytes) -> None:
    (container / "zarr.json").write_bytes(data)
    with pytest.raises((FormatError, UnsupportedError)):
        seal(container, Removals(name=True, private=True))
    assert (container / "zarr.json").read_bytes() == data


def test_a_critical_feature_that_is_unknown_is_not_sealed(container: Path) -> None:
    edit(container, lambda a: a.update(features={"holograms": "critical"}))
    with pytest.raises(UnsupportedError, match="holograms"):
        seal(container)


def test_what_this_version_does_not_know_is_kept(container: Path) -> None:
    added = {"extensions": {"org.example.study": {"arm": [1, {"b": None}]}}, "features": {"foo": "ancillary"}, "foo": 7}
    edit(container, lambda a: a.update(added))
    document = json.loads((container / "zarr.json").read_bytes())
    document["attributes"]["other"] = {"program": 1}
    (container / "zarr.json").write_text(json.dumps(document))
    seal(container, Removals(name=True))
    stored = attributes(container)
    assert {name: stored[name] for name in added} == added
    assert json.loads((container / "zarr.json").read_bytes())["attributes"]["other"] == {"program": 1}
    assert list(open_container(container).attributes.provenance.extensions) == ["org.example.study"]


def test_the_overview_goes_with_what_leads_to_it(tmp_path: Path, tiny_file: Path) -> None:
    path, slide = tmp_path / "a.hc.zarr", ArraySlide(synthetic_slide(600, 300), mpp=0.5)
    histocodec.encode(slide, path, model=str(tiny_file), embed_model=True, device="cpu", effort=0, quality=30)
    edit(path, lambda a: a.update(mpp=[0.25, 0.25]))
    seal(path)
    document = json.loads((path / "zarr.json").read_bytes())["attributes"]
    (dataset,) = document["ome"]["multiscales"][0]["datasets"]
    width = document["histocodec"]["overview"]["width"]
    assert dataset["coordinateTransformations"][0]["scale"][2] == pytest.approx(0.25 * 600 / width)
    edit(path, lambda a: a.pop("overview"))
    assert seal(path).removed == ("overview",)
    assert "ome" not in json.loads((path / "zarr.json").read_bytes())["attributes"]
    assert verify(path, device="cpu").ok


def test_images_that_were_taken_off_the_list_by_hand_are_removed(container: Path) -> None:
    edit(container, lambda a: (a.pop("associated"), a.pop("icc")))
    assert set(seal(container).removed) == {"image label", "image macro", "icc"}
    assert verify(container, device="cpu").ok
    assert bytes(LABEL) * 50 not in everything(container)


# The usual edits.


def test_what_is_dropped_is_in_no_byte(container: Path) -> None:
    found = everything(container)
    assert all(secret in found for secret in (NAME.encode(), b"jane.doe", b"John Doe", bytes(LABEL) * 50))
    report = seal(container, Removals(name=True, properties=("aperio.User", "aperio.Pat*"), images=("label",)))
    assert report.removed == ("name", "image label", "property aperio.User", "property aperio.Patient")
    found = everything(container)
    assert [secret for secret in (NAME.encode(), b"jane.doe", b"John Doe", bytes(LABEL) * 50) if secret in found] == []
    assert bytes(MACRO) * 50 in found
    assert attributes(container)["dropped"] == ["label", "property aperio.User", "property aperio.Patient"]
    assert verify(container, device="cpu").ok


def test_drop_private_leaves_what_an_encode_would_have_left(container: Path, tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(synthetic_slide(300, 200, seed=5), name=NAME, properties=PROPERTIES, icc_profile=b"profile")
    histocodec.encode(
        slide, tmp_path / "b.hc.zarr", model=str(tiny_file), quality=40, effort=0, device="cpu", overview=None
    )
    seal(container, Removals(private=True))
    sealed, careful = attributes(container), attributes(tmp_path / "b.hc.zarr")
    for member in ("source", "properties", "associated"):
        assert sealed.get(member) == careful.get(member), member
    assert {"label", "macro", *careful["dropped"]} == set(sealed["dropped"])


def test_dropping_twice_changes_nothing_more(container: Path) -> None:
    removals = Removals(name=True, properties=("aperio.User",), images=("label",), private=True)
    first = seal(container, removals)
    again = seal(container, removals)
    assert (again.removed, again.digest) == ((), first.digest)


@pytest.mark.parametrize(
    ("removals", "words"),
    [
        (Removals(properties=("aperio.Usr",)), "has no property 'aperio.Usr'"),
        (Removals(properties=("leica.*",)), r"has no property 'leica\.\*'"),
        (Removals(images=("lable",)), "has no image 'lable'; it has label, macro"),
    ],
)
def test_a_misspelt_name_is_an_error_and_nothing_is_dropped(container: Path, removals: Removals, words: str) -> None:
    before = contents(container)
    with pytest.raises(UsageError, match=words):
        seal(container, removals)
    assert contents(container) == before


def test_an_image_that_could_not_be_removed_is_removed_the_next_time(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(1, "not permitted", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", refuse)
        with pytest.raises(OutputError, match=r"associated-label: cannot be removed.*seal the container again"):
            seal(container, Removals(images=("label",)))
    assert "label" not in open_container(container).attributes.associated
    assert not verify(container, device="cpu").ok
    assert seal(container, Removals(images=("label",))).removed == ("image label",)
    assert verify(container, device="cpu").ok


def test_a_container_that_cannot_be_written_stays_as_it_was(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(container)

    def full(path: Path, data: bytes) -> None:
        raise OutputError(f"{path}: cannot be written: disk full")

    monkeypatch.setattr("histocodec.formats.container.arrays.write_atomically", full)
    with pytest.raises(OutputError, match="disk full"):
        seal(container, Removals(name=True, images=("label",)))
    assert contents(container) == before


# One file.


def test_one_file_is_sealed_as_its_folder_is(container: Path, tmp_path: Path) -> None:
    file, removals = tmp_path / "a.hcz", Removals(name=True, images=("label",), private=True)
    pack(container, file)
    report = seal(file, removals)
    assert report.digest == seal(container, removals).digest
    pack(container, tmp_path / "b.hcz")
    assert file.read_bytes() == (tmp_path / "b.hcz").read_bytes()
    assert verify(file, device="cpu").ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hc.zarr", "a.hcz", "b.hcz"]


def test_one_file_that_does_not_change_is_not_written(container: Path, tmp_path: Path) -> None:
    pack(container, tmp_path / "a.hcz")
    before = (tmp_path / "a.hcz").stat()
    assert seal(tmp_path / "a.hcz").removed == ()
    assert (tmp_path / "a.hcz").stat().st_ino == before.st_ino


def test_one_file_that_was_edited_is_sealed(container: Path, tmp_path: Path) -> None:
    edit(container, lambda a: a["source"].pop("name"))
    write_zip(container, tmp_path / "a.hcz")
    with pytest.raises(FormatError, match="`histocodec seal` recomputes it"):
        histocodec.open(tmp_path / "a.hcz")
    assert seal(tmp_path / "a.hcz").digest == seal(container).digest
    assert verify(tmp_path / "a.hcz", device="cpu").ok


def test_one_file_that_cannot_be_written_stays_as_it_was(
    container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(container, tmp_path / "a.hcz")
    before = (tmp_path / "a.hcz").read_bytes()

    def full(folder: Path, file: Path) -> None:
        raise OutputError(f"{file}: cannot be written: disk full")

    monkeypatch.setattr("histocodec.formats.seal.write_zip", full)
    with pytest.raises(OutputError, match="disk full"):
        seal(tmp_path / "a.hcz", Removals(name=True))
    assert (tmp_path / "a.hcz").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hc.zarr", "a.hcz"]


# What cannot be sealed.


def test_a_container_of_version_1_has_nothing_to_seal(tmp_path: Path) -> None:
    written(tmp_path / "old.zarr")
    with pytest.raises(UnsupportedError, match="version 1 has no digest"):
        seal(tmp_path / "old.zarr")


def test_what_is_no_container_is_not_sealed(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(UnsupportedError, match="no histocodec container"):
        seal(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        seal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedError, match="is no histocodec container"):
        seal(tmp_path / "empty")


def test_who_may_read_a_container_does_not_change(container: Path, tmp_path: Path) -> None:
    pack(container, tmp_path / "a.hcz")
    for path, file in ((container, container / "zarr.json"), (tmp_path / "a.hcz", tmp_path / "a.hcz")):
        file.chmod(0o600)
        seal(path, Removals(name=True))
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_link_to_one_file_stays_a_link(container: Path, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    pack(container, tmp_path / "archive" / "a.hcz")
    (tmp_path / "a.hcz").symlink_to(tmp_path / "archive" / "a.hcz")
    digest = seal(tmp_path / "a.hcz", Removals(name=True)).digest
    assert (tmp_path / "a.hcz").is_symlink()
    assert open_container(tmp_path / "archive" / "a.hcz").attributes.provenance.digest == digest


# The command.


def test_the_command_tells_the_old_and_the_new_digest(container: Path, capsys: Captured) -> None:
    before = attributes(container)["digest"]
    assert run(["seal", str(container), "--drop-name", "--drop-image", "macro", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["previous_digest"] == before
    assert printed["digest"] == attributes(container)["digest"]
    assert printed["removed"] == ["name", "image macro"]
    assert run(["seal", str(container), "--drop-private"]) == 0
    text = capsys.readouterr().out
    assert printed["digest"] in text
    assert attributes(container)["digest"] in text
    assert "property aperio.User" in text
    assert run(["seal", str(container)]) == 0
    assert "(unchanged)" in capsys.readouterr().out


def test_the_command_says_what_is_wrong(container: Path, capsys: Captured) -> None:
    code, line = failure(capsys, "seal", container, "--drop-property", "aperio.Usr")
    assert (code, "has no property 'aperio.Usr'" in line) == (2, True)
    edit(container, lambda a: a.pop("uid"))
    code, line = failure(capsys, "seal", container)
    assert (code, "field 'uid' is missing" in line) == (3, True)
