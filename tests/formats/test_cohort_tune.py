"""What a cohort is tuned and searched with: a quality for a wanted fidelity, and an index of all slides."""

import math
import tomllib
from pathlib import Path

import pytest

from histocodec.errors import UsageError
from histocodec.formats.cohort.gather import gather_index
from histocodec.formats.cohort.ledger import Ledger
from histocodec.formats.cohort.plan import make_plan
from histocodec.formats.cohort.policy import read_policy
from histocodec.formats.cohort.task import Task, perform
from histocodec.formats.cohort.tune import (
    QUALITIES,
    Curve,
    CurvePoint,
    Proposal,
    lowest_quality,
    policy_lines,
    tune,
)
from histocodec.formats.cohort.tune_page import write_curves
from histocodec.formats.encode.encode import encode_slide
from histocodec.formats.encode.options import EncodeOptions
from histocodec.sources import open_slide
from tests.support.cohorts import make_slides, planned, rows


def curve(slope: float) -> Curve:
    """A slide whose PSNR rises by so much with each quality, from 20 dB, and its worst chunk 5 dB below."""
    points = tuple(CurvePoint(q, 20 + slope * q, 15 + slope * q, q / 100) for q in QUALITIES)
    return Curve("slide", {}, 1, points)


def test_the_lowest_quality_is_the_one_that_just_reaches_what_is_wanted() -> None:
    assert lowest_quality(curve(0.2), 30, None) == pytest.approx(50)
    assert lowest_quality(curve(0.2), 30, 26) == pytest.approx(55)
    assert lowest_quality(curve(0.2), 20, None) == 0
    assert math.isinf(lowest_quality(curve(0.1), 31, None))


def test_the_lines_of_a_policy_are_read_as_they_are_meant(tmp_path: Path) -> None:
    proposals = (
        Proposal({"stain": 'Ki-67 "new"\\', "my organ": "lung"}, 3, 61, 0.3),
        Proposal({"stain": "HE"}, 3, None, None),
    )
    text = policy_lines(proposals)
    assert tomllib.loads(text)["rule"][0]["when"] == {"stain": 'Ki-67 "new"\\', "my organ": "lung"}
    (tmp_path / "policy.toml").write_text(text)
    policy = read_policy(tmp_path / "policy.toml")
    assert policy.options_of({"stain": 'Ki-67 "new"\\', "my organ": "lung"}) == {"quality": 61}
    assert policy.options_of({"stain": "HE"}) == {}


@pytest.mark.slow
def test_a_proposed_quality_gives_the_wanted_psnr(tmp_path: Path, tiny_file: Path) -> None:
    make_slides(tmp_path / "slides", 2, side=700)
    lines = "".join(f"slides/slide-00{n}.tif,{stain}\n" for n, stain in enumerate(("HE", "IHC")))
    (tmp_path / "m.csv").write_text("path,stain\n" + lines + "slides/gone.svs,HE\n")
    wanted = 31.0
    report = tune([tmp_path / "m.csv"], wanted_psnr=wanted, by=("stain",), model=str(tiny_file), device="cpu")
    assert [proposal.labels["stain"] for proposal in report.proposals] == ["HE", "IHC"]
    assert len(report.left_out) == 1 and "gone.svs" in report.left_out[0]
    for proposal, seen in zip(report.proposals, report.curves, strict=True):
        assert proposal.quality is not None
        options = EncodeOptions(quality=proposal.quality, effort=0, model=str(tiny_file), device="cpu")
        with open_slide(seen.source) as slide:
            measured = encode_slide(slide, tmp_path / f"{Path(seen.source).stem}.hcz", options).psnr
        assert wanted - 0.4 < measured < wanted + 0.8
    write_curves(report, tmp_path / "curves.html", wanted_psnr=wanted)
    assert (tmp_path / "curves.html").read_text().count("<polyline") == 6
    with pytest.raises(UsageError, match="has no label 'organ'"):
        tune([tmp_path / "m.csv"], wanted_psnr=wanted, by=("organ",))
    with pytest.raises(UsageError, match="nothing is wanted"):
        tune([tmp_path / "m.csv"])


def test_an_index_of_a_cohort_takes_in_what_is_new(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOCODEC_MODELS", str(tiny_file.parent))
    ledger = tmp_path / "ledger"
    with pytest.raises(UsageError, match="is no ledger"):
        gather_index(ledger, tmp_path / "index")
    for count in (2, 3):
        make_slides(tmp_path / "slides", count)
        planned(tmp_path / "slides", tmp_path / "out", tiny_file, ledger)
        with Ledger.open(ledger) as opened:
            for kind in ("encode", "embed"):
                opened.begin(kind, again=False, attempts=3)  # type: ignore[arg-type]  # both are kinds
                for row in list(opened.rows(kind, ("planned",))):  # type: ignore[arg-type]
                    task = Task(kind, row.number, row.source, row.result, row.options, row.created, device="cpu")  # type: ignore[arg-type]
                    result = perform(task.to_json(), threads=1)
                    assert result["state"] == "done", result
                    left_out = ("number", "lasting", *(("version",) if kind == "embed" else ()))
                    opened.finish(kind, [(row.number, {k: v for k, v in result.items() if k not in left_out})])  # type: ignore[arg-type]
        index = gather_index(ledger, tmp_path / "index")
        assert [slide.path for slide in index.slides] == [row.result for row in rows(ledger)]
        assert index.slides[0].labels["mpp"] == "0.5"
    row = rows(ledger)[0]
    check = Task("verify", row.number, row.source, row.result, row.options, row.created, detail={"digest": row.digest})
    assert perform(check.to_json(), threads=1)["state"] == "done"  # vectors are no part of the digest
    assert row.result_bytes == Path(row.result).stat().st_size


def test_a_cohort_without_vectors_has_no_index(tmp_path: Path, tiny_file: Path) -> None:
    make_slides(tmp_path / "slides", 1)
    make_plan([tmp_path / "slides"], str(tmp_path / "out"), tmp_path / "ledger", read_policy(_empty(tmp_path)))
    with pytest.raises(UsageError, match="no slide has vectors"):
        gather_index(tmp_path / "ledger", tmp_path / "index")


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text("")
    return tmp_path / "policy.toml"
