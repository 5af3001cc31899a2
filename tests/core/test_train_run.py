"""Runs of recipes: from files to a model that codes, with every stage; what resumes and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histocodec.cli.main import run
from histocodec.codec.chunk import HyperChunkCodec
from histocodec.errors import FormatError, UsageError
from histocodec.models.config import HyperConfig
from histocodec.models.export import export_model
from histocodec.models.weights import load_model
from histocodec.sources.synthetic import synthetic_slide
from histocodec.train.recipe import (
    HyperPatches,
    HyperRecipe,
    HyperStart,
    MainStage,
    Model,
    PriorStage,
    PruneStage,
    SynthesisStage,
    Tables,
)
from histocodec.train.recipe_file import find_recipe
from histocodec.train.run import run_training
from histocodec.train.setup import RunOptions
from histocodec.train.start.from_model import deepened
from tests.support.tiny import TINY, tiny_integer_weights, tiny_model, tiny_network
from tests.support.training import folder_of_images

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

FROM_KLT = HyperRecipe(
    model=Model("hyper", "mine"),
    patches=HyperPatches(2, 64),
    start=HyperStart(klt_blocks=2000),
    shape=TINY,
    train=MainStage(4, 5e-4, warmup=1, decay=2, enlarged=1, checkpoint_every=2),
    tables=Tables(2),
)


def from_model(start: Path, **stages: SynthesisStage | PruneStage | None) -> HyperRecipe:
    """A recipe without a main stage."""
    recipe = HyperRecipe(model=Model("hyper", "whole"), patches=HyperPatches(2, 64), start=HyperStart(str(start)))
    return replace(recipe, **stages)  # type: ignore[arg-type]  # the fields' own types


def integer_model(folder: Path) -> Path:
    path = folder / "integer.safetensors"
    path.write_bytes(tiny_integer_weights().data)
    return path


def options(data: Path, out: Path, **others: object) -> RunOptions:
    return RunOptions((data,), out, device="cpu", **others)  # type: ignore[arg-type]  # fields, by name


@pytest.fixture
def section(tmp_path: Path) -> Path:
    """A folder with one image."""
    folder = tmp_path / "data"
    folder.mkdir()
    Image.fromarray(synthetic_slide(320, 320, seed=1)).save(folder / "section.png")
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three images in `data`, and in `run` what FROM_KLT makes of them."""
    folder = tmp_path_factory.mktemp("finished")
    run_training(FROM_KLT, options(folder_of_images(folder / "data"), folder / "run"), ignore_line)
    return folder


def ignore_line(line: str) -> None:
    pass


def test_a_run_from_files_ends_in_a_model_that_codes(tmp_path: Path) -> None:
    data, lines = folder_of_images(tmp_path / "data"), list[str]()
    here = options(data, tmp_path / "run")
    weights = load_model(run_training(FROM_KLT, here, lines.append))
    assert weights.id == "mine"
    assert weights.hyper == replace(TINY, integer_synthesis=True)
    y = np.random.default_rng(0).integers(-9, 10, (TINY.latent_channels, 8, 8)).astype(np.int8)
    codec = HyperChunkCodec(weights)
    assert np.array_equal(codec.decode(codec.encode(y, 50), y.shape), y)
    written = json.loads((tmp_path / "run" / "options.json").read_text())
    assert (written["seed"], written["recipe"]["train"]["steps"]) == (0, 4)
    with pytest.raises(UsageError, match="--resume"):
        run_training(FROM_KLT, here, lines.append)
    longer = replace(
        FROM_KLT,
        train=MainStage(6, 5e-4, warmup=1, decay=2, enlarged=1, checkpoint_every=2),
        prune=PruneStage(24),
        prior=PriorStage(2),
    )
    lighter = load_model(run_training(longer, replace(here, resume=True), lines.append))
    assert (lighter.hyper.hidden16, lighter.hyper.integer_synthesis) == (24, True)
    assert len((tmp_path / "run" / "prior.csv").read_text().splitlines()) == 1
    assert any("resumed at step 4" in line for line in lines)


def test_a_resumed_run_makes_the_same_model(section: Path, tmp_path: Path) -> None:
    half = replace(FROM_KLT, train=replace(FROM_KLT.train, steps=2, decay=0, enlarged=0))  # type: ignore[type-var]
    whole = replace(FROM_KLT, train=replace(FROM_KLT.train, steps=4, decay=0, enlarged=0))  # type: ignore[type-var]
    undisturbed = run_training(whole, options(section, tmp_path / "one"), ignore_line)
    run_training(half, options(section, tmp_path / "two"), ignore_line)
    resumed = run_training(whole, options(section, tmp_path / "two", resume=True), ignore_line)
    one, two = (load_model(path).arrays for path in (undisturbed, resumed))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "seed", "complaint"),
    [
        ({"shape": replace(TINY, context_width=20)}, 0, "of another model"),
        ({"patches": HyperPatches(3, 64)}, 0, "whose batch is 2, not 3"),
        ({"patches": HyperPatches(2, 128)}, 0, "whose size is 64, not 128"),
        ({}, 1, "whose seed is 0, not 1"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    change: dict[str, HyperConfig | HyperPatches], seed: int, complaint: str, finished_run: Path
) -> None:
    other = replace(FROM_KLT, **change)  # type: ignore[arg-type]  # the fields' own types
    with pytest.raises(UsageError, match=complaint):
        run_training(other, options(finished_run / "data", finished_run / "run", seed=seed, resume=True), ignore_line)


def test_a_checkpoint_of_another_start_is_refused(finished_run: Path, tmp_path: Path) -> None:
    deeper = export_model(tiny_network(config=deepened(TINY)), "deeper")  # which a start deepens no further
    (tmp_path / "deeper.safetensors").write_bytes(deeper.data)
    start = replace(FROM_KLT, shape=deepened(TINY))
    out = tmp_path / "run"
    run_training(start, options(finished_run / "data", out), ignore_line)
    other = replace(FROM_KLT, shape=None, start=HyperStart(str(tmp_path / "deeper.safetensors")))
    with pytest.raises(UsageError, match=f"whose start is klt, not {deeper.sha256}"):
        run_training(other, options(finished_run / "data", out, resume=True), ignore_line)


def test_a_file_that_is_no_checkpoint_is_refused(section: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(b"nonsense")
    with pytest.raises(FormatError, match=r"last\.pt: is no checkpoint"):
        run_training(FROM_KLT, options(section, tmp_path / "run", resume=True), ignore_line)


@pytest.mark.parametrize(("steps", "hidden"), [(0, None), (3, None), (3, 24)])
def test_without_a_main_stage_the_synthesis_alone_changes(
    steps: int, hidden: int | None, section: Path, tmp_path: Path
) -> None:
    start = tiny_model(tmp_path)
    recipe = from_model(start, synthesis=SynthesisStage(steps), prune=None if hidden is None else PruneStage(hidden))
    made = load_model(run_training(recipe, options(section, tmp_path / "run"), ignore_line))
    before = load_model(start)
    assert made.id == "whole"
    assert made.hyper == replace(before.hyper, integer_synthesis=True, hidden16=hidden)
    kept = [name for name in before.arrays if not name.startswith("g_s.")]
    assert all(np.array_equal(made.arrays[name], before.arrays[name]) for name in kept)
    assert (made.notes["from"], made.notes["decoder_steps"]) == (before.sha256, str(steps))


def test_an_integer_synthesis_learns_on_from_its_integers(section: Path, tmp_path: Path) -> None:
    before, start = tiny_integer_weights(), integer_model(tmp_path)
    same = load_model(run_training(from_model(start), options(section, tmp_path / "same"), ignore_line))
    assert same.hyper == before.hyper
    assert all(np.array_equal(same.arrays[name], array) for name, array in before.arrays.items() if "g_s" in name)
    longer = from_model(start, synthesis=SynthesisStage(20))
    more = load_model(run_training(longer, options(section, tmp_path / "more"), ignore_line))
    changed = {name for name, array in before.arrays.items() if not np.array_equal(more.arrays[name], array)}
    learnt = {name for name in changed if name.startswith("g_s.") and name.endswith((".weight", ".bias"))}
    assert learnt and all(name in learnt or name.startswith("reach.") for name in changed)
    pruned = from_model(start, prune=PruneStage(24))
    with pytest.raises(UsageError, match="has an integer synthesis already"):
        run_training(pruned, options(section, tmp_path / "narrower"), ignore_line)


def growing(start: Path, steps: int) -> HyperRecipe:
    """A recipe that goes on from a model with more residual blocks, in whole numbers from the first step."""
    return replace(
        FROM_KLT,
        start=HyperStart(str(start)),
        shape=replace(TINY, analysis16=(True, False, True), synthesis8=(True, True)),
        train=MainStage(steps, 1e-4, warmup=1, integers=True, prior_rate=0.5, edges=2.0, checkpoint_every=2),
    )


def test_a_grown_run_in_whole_numbers_resumes_and_makes_the_same_model(section: Path, tmp_path: Path) -> None:
    start = integer_model(tmp_path)
    undisturbed = run_training(growing(start, 4), options(section, tmp_path / "one"), ignore_line)
    run_training(growing(start, 2), options(section, tmp_path / "two"), ignore_line)
    resumed = run_training(growing(start, 4), options(section, tmp_path / "two", resume=True), ignore_line)
    one, two = (load_model(path) for path in (undisturbed, resumed))
    assert one.hyper == replace(TINY, analysis16=(True, False, True), synthesis8=(True, True), integer_synthesis=True)
    assert one.arrays.keys() == two.arrays.keys()
    assert all(np.array_equal(one.arrays[name], two.arrays[name]) for name in one.arrays)
    floats = replace(growing(start, 6), train=MainStage(6, 1e-4, warmup=1))
    with pytest.raises(UsageError, match="whose synthesis is integers, not floats"):
        run_training(floats, options(section, tmp_path / "two", resume=True), ignore_line)


def test_a_model_grows_by_residual_blocks_alone(section: Path, tmp_path: Path) -> None:
    start = integer_model(tmp_path)
    for shape in (replace(TINY, context_width=20), replace(TINY, synthesis16=(False, False))):
        with pytest.raises(UsageError, match="with residual blocks added at the end"):
            run_training(replace(growing(start, 2), shape=shape), options(section, tmp_path / "run"), ignore_line)
    with pytest.raises(UsageError, match="that of tiny-0 is in floating point"):
        run_training(growing(tiny_model(tmp_path), 2), options(section, tmp_path / "run"), ignore_line)
    assert not (tmp_path / "run").exists()


def test_the_synthesis_learns_from_stored_latents(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(synthetic_slide(400, 320, seed=1)).save(data / "section.png")
    before, lines = tiny_integer_weights(), list[str]()
    stage = SynthesisStage(10, stored_crops=3)
    recipe = from_model(integer_model(tmp_path), synthesis=stage)
    made = load_model(run_training(recipe, options(data, tmp_path / "run"), lines.append))
    assert any("encoded 3 of 3" in line for line in lines)
    assert made.hyper == before.hyper
    assert not np.array_equal(made.arrays["g_s.tail.bias"], before.arrays["g_s.tail.bias"])
    assert not np.array_equal(made.arrays["tables.freq"], before.arrays["tables.freq"])
    with pytest.raises(UsageError, match="stored_crops needs a start from a model with an integer synthesis"):
        floats = from_model(tiny_model(tmp_path), synthesis=stage)
        run_training(floats, options(data, tmp_path / "float"), ignore_line)


def test_a_start_with_too_few_activations_is_refused_before_training(section: Path, tmp_path: Path) -> None:
    recipe = replace(FROM_KLT, shape=None, start=HyperStart(str(tiny_model(tmp_path))), prune=PruneStage(52))
    with pytest.raises(UsageError, match="a multiple of 4 up to 48"):
        run_training(recipe, options(section, tmp_path / "run"), ignore_line)
    assert not (tmp_path / "run").exists()


def test_the_command_line_trains_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe for newcomers, with all stages, and the result that it promises."""
    data, out = folder_of_images(tmp_path / "data"), tmp_path / "run"
    arguments = ["train", str(data), "--recipe", "tiny", "--out", str(out), "--model-id", "mine", "--holdout", "0.3",
                 "--device", "cpu", "--json"]  # fmt: skip
    assert run(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == str(out / "mine.safetensors")
    assert facts["steps"] == 80
    weights = load_model(out / "mine.safetensors")
    recipe = find_recipe("tiny")
    assert isinstance(recipe, HyperRecipe)
    assert recipe.shape == TINY
    assert weights.hyper == replace(TINY, integer_synthesis=True, hidden16=24)
    assert weights.notes["recipe"] == "tiny"
    losses = [float(line.split(",")[1]) for line in (out / "log.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.8 * losses[0]
    assert (out / "validation.jsonl").exists()


def test_from_replaces_the_start_of_a_recipe_that_has_one(
    section: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[model]\nfamily = "hyper"\nid = "mine"\n[start]\nmodel = "not-there"\n[patches]\nbatch = 2\nsize = 64\n'
    )
    arguments = ["train", str(section), "--recipe", str(recipe), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert run(arguments) == 4
    assert "not-there" in capsys.readouterr().err
    assert run([*arguments, "--from", str(tiny_model(tmp_path))]) == 0
    assert run(["train", str(section), "--out", str(tmp_path / "more"), "--from", "hyper-6"]) == 2
    assert "recipe flagship starts from no model" in capsys.readouterr().err
