"""With `--on-error background`, what cannot be read is background and is named; everything else is as ever."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

import histocodec
from histocodec.cli.main import run
from histocodec.errors import FormatError, HistocodecError, SourceError, UnsupportedError
from histocodec.formats.container.attributes import MAX_ASSOCIATED, Provenance
from histocodec.formats.container.read import open_container
from histocodec.formats.encode.extras import _dropped
from histocodec.formats.encode.journal import Journal
from histocodec.formats.encode.partial_container import PartialContainer
from histocodec.formats.encode.records import ShardRecord
from histocodec.formats.encode.unreadable import Place, TolerantSlide, Unreadable
from histocodec.geometry import Region, ShardKey
from histocodec.slide import Pixels
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.slides import contents, encoded

Captured = pytest.CaptureFixture[str]
COLOUR = (240, 238, 241)


class Damaged(ArraySlide):
    """A slide of which some regions of level 0 cannot be read."""

    def __init__(self, levels: list[Pixels], *damage: Region) -> None:
        super().__init__(levels, name="damaged", background=COLOUR)
        self.damage = damage

    def _read_inside(self, region: Region, level: int) -> Pixels:
        if level == 0 and any(not region.intersect(part).empty for part in self.damage):
            raise SourceError(f"{self.name}: level 0, region {region} cannot be read")
        return super()._read_inside(region, level)


def two_levels(width: int, height: int) -> list[Pixels]:
    pixels = synthetic_slide(width, height, seed=3)
    return [pixels, np.ascontiguousarray(pixels[::4, ::4])]


def test_pieces_that_cannot_be_read_have_the_colour() -> None:
    pixels = synthetic_slide(1300, 900, seed=3)
    unreadable = Unreadable()
    slide = TolerantSlide(Damaged([pixels], Region(700, 300, 1, 1), Region(1290, 890, 2, 2)), unreadable, COLOUR)
    expected = pixels.copy()
    expected[256:512, 512:768] = COLOUR
    expected[768:900, 1280:1300] = COLOUR
    assert np.array_equal(slide.read(slide.levels[0].region, 0), expected)
    assert np.array_equal(slide.read(Region(650, 290, 300, 300), 0), expected[290:590, 650:950])
    assert [str(place) for place in unreadable.places((0,))] == ["0:512,256,256x256", "0:1280,768,20x132"]


def test_pieces_that_touch_are_named_together() -> None:
    unreadable = Unreadable()
    for y in (0, 256):
        for x in (256, 512, 768):
            unreadable.add(Place.of(2, Region(x, y, 256, 256)))
    unreadable.add(Place.of(2, Region(256, 512, 256, 256)))
    unreadable.add(Place.of(1, Region(0, 0, 256, 256)))  # a level that is not stored
    assert [str(place) for place in unreadable.places((0, 2))] == ["1:256,0,768x512", "1:256,512,256x256"]


def test_by_default_a_tile_that_cannot_be_read_is_an_error(tmp_path: Path, tiny_file: Path) -> None:
    slide = Damaged(two_levels(1300, 900), Region(700, 300, 1, 1))
    with pytest.raises(SourceError, match=r"cannot be read; --on-error background stores background there"):
        encoded(slide, tmp_path / "a.zarr", tiny_file)


def test_a_damaged_container_as_source_says_the_same_and_stays_a_damaged_file(tmp_path: Path, tiny_file: Path) -> None:
    class Broken(Damaged):
        def _read_inside(self, region: Region, level: int) -> Pixels:
            raise FormatError("a.hc.zarr: chunk 3 does not match its checksum")

    with pytest.raises(FormatError, match="chunk 3 does not match its checksum; --on-error background stores"):
        encoded(Broken(two_levels(1300, 900)), tmp_path / "a.zarr", tiny_file)


def test_where_background_would_not_help_it_is_not_advised(tmp_path: Path, tiny_file: Path) -> None:
    class Refused(Damaged):
        def _read_inside(self, region: Region, level: int) -> Pixels:
            raise UnsupportedError("its tiles are of a kind that cannot be read")

    class Vanishing(Damaged):
        def _read_inside(self, region: Region, level: int) -> Pixels:
            self.name = str(tmp_path / "another")
            return super()._read_inside(region, level)

    levels = two_levels(1300, 900)
    for slide, options in (
        (Refused(levels), {}),
        (Vanishing(levels), {}),
        (Damaged(levels, Region(0, 0, 1300, 900)), {"on_error": "background"}),
    ):
        with pytest.raises(HistocodecError) as raised:
            encoded(slide, tmp_path / "a.zarr", tiny_file, **options)
        assert "--on-error" not in str(raised.value)


def test_the_rest_is_encoded_and_the_places_are_named(tmp_path: Path, tiny_file: Path) -> None:
    levels = two_levels(1300, 900)
    slide = Damaged(levels, Region(700, 300, 1, 1))
    report = encoded(slide, tmp_path / "a.zarr", tiny_file, on_error="background", workers=1, embed_model=True)
    assert report.unreadable == (Place(0, 256, 512, 256, 256),)
    assert "region 0:512,256,256x256" in report.dropped
    assert open_container(tmp_path / "a.zarr").attributes.dropped == report.dropped
    encoded(slide, tmp_path / "b.zarr", tiny_file, on_error="background", workers=3, embed_model=True)
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")
    levels[0][256:512, 512:768] = COLOUR
    encoded(Damaged(levels), tmp_path / "c.zarr", tiny_file, embed_model=True)
    with histocodec.open(tmp_path / "a.zarr") as lost, histocodec.open(tmp_path / "c.zarr") as blank:
        assert np.array_equal(lost.read_array(0, 0, 1300, 900), blank.read_array(0, 0, 1300, 900))


def test_a_sound_slide_gives_the_same_bytes_but_for_what_was_asked(tmp_path: Path, tiny_file: Path) -> None:
    slide = ArraySlide(synthetic_slide(1300, 900, seed=3), name="sound")
    report = encoded(slide, tmp_path / "a.zarr", tiny_file, on_error="background")
    encoded(slide, tmp_path / "b.zarr", tiny_file)
    assert report.unreadable == ()
    found = []
    for name in ("a.zarr", "b.zarr"):
        attributes, files = open_container(tmp_path / name).attributes, contents(tmp_path / name)
        del files["zarr.json"]
        found.append((files, replace(attributes, provenance=Provenance(uid=attributes.provenance.uid))))
    assert found[0] == found[1]


def test_a_resumed_encode_names_what_an_undisturbed_one_names(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = Damaged(two_levels(6400, 40), Region(1024, 0, 512, 40), Region(6300, 10, 2, 2))  # one in each shard
    report = encoded(slide, tmp_path / "a.zarr", tiny_file, on_error="background")
    assert [str(place) for place in report.unreadable] == ["0:1024,0,512x40", "0:6144,0,256x40"]
    write = PartialContainer.write_shard

    def write_one(container: PartialContainer, shard: ShardKey, *chunks: object) -> None:
        if container.journal.records:
            raise KeyboardInterrupt
        write(container, shard, *chunks)  # type: ignore[arg-type]  # passed on

    with monkeypatch.context() as patch:
        patch.setattr(PartialContainer, "write_shard", write_one)
        with pytest.raises(KeyboardInterrupt):
            encoded(slide, tmp_path / "b.zarr", tiny_file, on_error="background", workers=1)
    resumed = encoded(slide, tmp_path / "b.zarr", tiny_file, on_error="background", resume=True)
    assert resumed.unreadable == report.unreadable
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")


def test_the_journal_notes_what_is_lost_before_the_shard(tmp_path: Path) -> None:
    dst, place = tmp_path / "a.zarr", Place(0, 256, 512, 256, 200)
    with Journal.start(dst, {}) as journal:
        journal.unreadable.add(place)
        journal.append(ShardRecord.of(ShardKey(0, 0, 0), b"", bytes(1), bytes(1), bytes(4), bytes(4)))
        journal.append(ShardRecord.of(ShardKey(0, 0, 1), b"", bytes(1), bytes(1), bytes(4), bytes(4)))
    keys = [next(iter(json.loads(line[: line.rindex(b"  ")]))) for line in journal_lines(dst)]
    assert keys == ["journal", "unreadable", "level", "level"]
    with Journal.start(dst, {}, resume=True) as journal:
        assert journal.unreadable.places((0,)) == (place,)
        assert len(journal.records) == 2


def journal_lines(dst: Path) -> list[bytes]:
    return dst.with_name(dst.name + ".journal").read_bytes().splitlines()


def test_a_slide_of_which_nothing_can_be_read_is_an_error(tmp_path: Path, tiny_file: Path) -> None:
    levels = two_levels(600, 500)
    with pytest.raises(SourceError, match="nothing of level 0"):
        encoded(Damaged(levels, Region(0, 0, 600, 500)), tmp_path / "a.zarr", tiny_file, on_error="background")


def test_places_that_are_too_many_are_counted() -> None:
    places = [Place(0, 0, 512 * number, 256, 256) for number in range(100)]
    dropped = _dropped(("label",), places, ("a", "b"))
    assert len(dropped) == MAX_ASSOCIATED
    assert dropped[:2] == ("label", "region 0:0,0,256x256")
    assert dropped[-2:] == ("region and 39 more", "property and 2 more")
    assert _dropped((), places[:1], ("a",)) == ("region 0:0,0,256x256", "property a")


def test_the_commands_name_the_places(capsys: Captured, tmp_path: Path, tiny_file: Path) -> None:
    source, dst = tmp_path / "slide.tif", tmp_path / "a.zarr"
    pixels = synthetic_slide(700, 600, seed=3)
    tifffile.imwrite(source, pixels, tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None)
    with tifffile.TiffFile(source) as file:
        offset, size = file.pages.first.dataoffsets[4], file.pages.first.databytecounts[4]
    data = bytearray(source.read_bytes())
    data[offset : offset + size] = bytes(size)
    source.write_bytes(data)
    arguments = ["encode", str(source), str(dst), "--model", str(tiny_file), "--device", "cpu", "--json"]
    assert run(arguments) == 1
    capsys.readouterr()
    assert run([*arguments, "--on-error", "background"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unreadable"] == [{"level": 0, "y": 256, "x": 256, "height": 256, "width": 256}]
    assert run(["info", str(dst)]) == 0
    assert "regions that could not be read: 0:256,256,256x256" in capsys.readouterr().out
