"""Recipes: those that ship are complete, and what makes no sense is refused in words that help."""

import tomllib
from pathlib import Path

import pytest

from histocodec.cli.main import run
from histocodec.cli.train import command
from histocodec.errors import UsageError
from histocodec.models.config import HyperConfig, VaeConfig
from histocodec.train.recipe import HyperRecipe, HyperStart, Model, VaeRecipe, VaeShape, VaeStage, VaeStart
from histocodec.train.recipe_file import DEFAULT_RECIPE, find_recipe, read_recipe, recipe_files

ROOT = Path(__file__).resolve().parents[2]
HYPER = '[model]\nfamily = "hyper"\nid = "mine"\n[patches]\nbatch = 2\n'
TRAIN = HYPER + "[train]\nsteps = 10\nrate = 1e-3\n"
FROM = HYPER + '[start]\nmodel = "hyper-6"\n'
VAE = '[model]\nfamily = "vae"\nid = "mine"\n[train]\nsteps = 10\n'


def recipe(text: str, folder: Path) -> HyperRecipe | VaeRecipe:
    file = folder / "mine.toml"
    file.write_text(text)
    return read_recipe(file)


@pytest.mark.parametrize("file", recipe_files(), ids=lambda file: file.stem)
def test_a_shipped_recipe_says_what_it_makes_and_what_it_costs(file: Path) -> None:
    shipped = read_recipe(file)
    assert shipped.name == file.stem
    for text in (shipped.summary, shipped.data, shipped.cost, shipped.expected):
        assert text.endswith(".")
    assert shipped.command.startswith("histocodec train DATA")
    assert f"--recipe {file.stem} " in shipped.command
    assert "--out RUN" in shipped.command
    assert len(shipped.summary) <= 80


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").rglob("recipes/*.toml")), ids=lambda file: file.stem)
def test_a_recipe_of_the_benchmarks_is_sound(file: Path) -> None:
    assert read_recipe(file).model.id == file.stem


def test_the_default_recipe_ships() -> None:
    shipped = find_recipe(DEFAULT_RECIPE)
    assert isinstance(shipped, HyperRecipe)
    assert shipped.shape is None
    (default,) = (parameter.default for parameter in command.params if parameter.name == "recipe")
    assert default == DEFAULT_RECIPE


def test_the_readme_names_every_shipped_recipe() -> None:
    page = (ROOT / "histocodec" / "train" / "README.md").read_text(encoding="utf-8")
    assert [file.stem for file in recipe_files() if f"`{file.stem}`" not in page and f"[{file.stem}]" not in page] == []


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--list-recipes"]) == 0
    printed = capsys.readouterr().out
    for file in recipe_files():
        assert f"{file.stem} " in printed
        assert str(file) in printed


def test_a_recipe_has_the_defaults_of_its_tables(tmp_path: Path) -> None:
    made = recipe(TRAIN, tmp_path)
    assert isinstance(made, HyperRecipe)
    assert made.train is not None
    assert (made.train.schedule, made.train.warmup, made.train.decay, made.patches.size) == ("wsd", 200, 0, 256)
    assert (made.start, made.shape, made.prune, made.prior, made.synthesis.steps) == (HyperStart(), None, None, None, 0)


def test_a_shape_is_a_config(tmp_path: Path) -> None:
    made = recipe(f"{TRAIN}[shape]\nlatent_channels = 48\nanalysis8 = [true, false]\nlambda_max = 1\n", tmp_path)
    assert isinstance(made, HyperRecipe)
    assert made.shape == HyperConfig(latent_channels=48, analysis8=(True, False), lambda_max=1.0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"\[model\] family is missing; 'hyper' or 'vae' is needed"),
        ('[model]\nfamily = "flow"\nid = "x"', r"\[model\] family is 'flow'; 'hyper' or 'vae' is needed"),
        ("model = 3", r"\[model\] family is missing"),
        ('[model]\nfamily = "hyper"\n[patches]\nbatch = 2', r"\[model\] id is missing"),
        ('[model]\nfamily = "hyper"\nid = "x"', r"\[patches\] is missing"),
        ('[model]\nfamily = "hyper"\nid = "../x"\n[patches]\nbatch = 2', r"\[model\] id is '\.\./x'; letters"),
        (f"{TRAIN}[trian]\nsteps = 1", "key trian is unknown; allowed are model, patches, start, shape, train"),
        (f"name = 'x'\n{TRAIN}", "key name is unknown; a recipe's name is that of its file"),
        (f"{TRAIN}step = 3", r"\[train\] key step is unknown; allowed are steps, rate, schedule"),
        (f"{HYPER}[train]\nsteps = 10", r"\[train\] rate is missing"),
        (f"{HYPER}[train]\nsteps = 1.5\nrate = 1e-3", r"\[train\] steps is 1\.5; an integer is needed"),
        (f"{HYPER}[train]\nsteps = true\nrate = 1e-3", r"\[train\] steps is True; an integer is needed"),
        (f"{HYPER}[train]\nsteps = 10\nrate = 'fast'", r"\[train\] rate is 'fast'; a number is needed"),
        (f"{HYPER}[train]\nsteps = 10\nrate = 0", r"\[train\] rate is 0\.0; a number above 0 is needed"),
        (f"{HYPER}[train]\nsteps = 10\nrate = nan", r"\[train\] rate is nan; a number above 0 is needed"),
        (f"{HYPER}[train]\nsteps = 0\nrate = 1", r"\[train\] steps is 0; at least 1 is needed"),
        (f"{TRAIN}decay = 11", r"\[train\] decay is 11; at least 0 and at most all 10 steps are allowed"),
        (f"{TRAIN}warmup = -1", r"\[train\] warmup is -1; at least 0 is needed"),
        (f"{TRAIN}schedule = 'linear'", r"\[train\] schedule is 'linear'; wsd or cosine is allowed"),
        (f"{TRAIN}checkpoint_every = 0", r"\[train\] checkpoint_every is 0; at least 1 is needed"),
        (f"{TRAIN}compile = 1", r"\[train\] compile is 1; true or false is needed"),
        (f"train = 3\n{HYPER}", r"train is 3; a table \[train\] is needed"),
        (TRAIN.replace("batch = 2", "batch = 0"), r"\[patches\] batch is 0; at least 1 is needed"),
        (TRAIN.replace("batch = 2", "batch = 2\nsize = 100"), r"\[patches\] size is 100; a multiple of 64 is needed"),
        (f"{TRAIN}[shape]\nintegr = 1", r"\[shape\] key integr is unknown; allowed are latent_channels"),
        (f"{TRAIN}[shape]\ninteger_synthesis = true", r"\[shape\] integer_synthesis is not allowed: every run ends"),
        (f"{TRAIN}[shape]\nlatent_channels = 6", r"\[shape\] latent_channels is 6; a multiple of 4 from 4 to 1020"),
        (f"{TRAIN}[shape]\nanalysis8 = [1]", r"\[shape\] analysis8 is \[1\]; a list of booleans is needed"),
        (f"{TRAIN}[start]\nklt_blocks = 0", r"\[start\] klt_blocks is 0; at least 1 is needed"),
        (f"{TRAIN}[prior]\nsteps = 0", r"\[prior\] steps is 0; at least 1 is needed"),
        (f"{TRAIN}[prune]", r"\[prune\] hidden16 is missing"),
        (HYPER, r"\[train\] is missing; only a recipe with \[start\] model can do without it"),
        (f"{FROM}[shape]\nwidth8 = 192", r"\[shape\] is not allowed without \[train\]"),
        (f"{TRAIN}prior_rate = 0", r"\[train\] prior_rate is 0\.0; a number above 0 is needed"),
        (f"{TRAIN}edges = -1", r"\[train\] edges is -1\.0; a number from 0 is needed"),
        (f"{TRAIN}integers = true", r"\[train\] integers needs \[start\] model"),
        (f"{TRAIN}integers = true\n[start]\nmodel = 'hyper-6'\n[prune]\nhidden16 = 64",
         r"\[prune\] is not allowed with \[train\] integers"),
        (f"{FROM}klt_blocks = 9", r"\[start\] klt_blocks is not allowed with \[start\] model"),
        (f"{FROM}[prior]\nsteps = 9", r"\[prior\] is not allowed without \[train\]"),
        (f"{FROM}[tables]\nbatches = 9", r"\[tables\] is not allowed without \[train\]"),
        (f"{TRAIN}[synthesis]\nstored_crops = 3", r"\[synthesis\] stored_crops is not allowed with \[train\]"),
        (f"{FROM}[prune]\nhidden16 = 64\n[synthesis]\nstored_crops = 3", r"stored_crops is not allowed with \[train\]"),
        (f"{VAE}[prune]\nhidden16 = 4", "key prune is unknown; allowed are model, train, shape, patches, start"),
        (f"{VAE}[patches]\nsize = 64", r"\[patches\] key size is unknown; allowed are batch"),
        (f"{VAE}[start]\nmodel = 'hyper-6'", r"\[start\] key model is unknown; allowed are klt"),
        (f"{VAE}[shape]\nlatent_channels = 10", r"\[shape\] latent_channels is 10; a multiple of 4"),
        (f"{VAE}[shape]\nratio = 20_000", r"\[shape\] ratio is 20000; null or 1 to 10000 is allowed"),
        (f"{VAE}[shape]\nratio = 0", r"\[shape\] ratio is 0; null or 1 to 10000 is allowed"),
        (f"{VAE}[shape]\nratio = nan", r"\[shape\] ratio is nan; an integer is needed"),
        (f"{VAE}[shape]\nshortcut = true", r"\[shape\] key shortcut is unknown"),
        (f"{VAE}[shape]\nstride = 16", r"\[shape\] stride is 16; one of 32, 64, 128 is allowed"),
        (f"{VAE}[shape]\nlatent_channels = 260\nstride = 32\n[start]\nklt = true",
         r"\[shape\] latent_channels is 260; with \[start\] klt, at most 256 are allowed at stride 32"),
        (f"{VAE}patience = 0", r"\[train\] patience is 0; at least 1 is needed"),
    ],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"mine\.toml: {complaint}" if complaint.startswith("\\[") else complaint):
        recipe(text, tmp_path)


@pytest.mark.parametrize("content", [b"[model", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.toml: is not TOML"):
        find_recipe(str(tmp_path / "mine.toml"))


def test_a_recipe_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe 'flagshp' does not exist; a \.toml file is allowed, or .*flagship"):
        find_recipe("flagshp")
    with pytest.raises(UsageError, match=r"none\.toml: the recipe cannot be read: No such file"):
        find_recipe(str(tmp_path / "none.toml"))


def test_the_nominal_ratio_follows_from_the_numbers() -> None:
    def config(shape: VaeShape, *, klt: bool = False) -> VaeConfig:
        return VaeRecipe(Model("vae", "mine"), VaeStage(10), shape, start=VaeStart(klt)).config

    assert config(VaeShape()) == VaeConfig()
    assert config(VaeShape(), klt=True) == VaeConfig(shortcut=True)
    assert config(VaeShape(latent_channels=256)).ratio == 256
    assert config(VaeShape(stride=128)).ratio == 2048
    assert config(VaeShape(latent_channels=8, stride=128)).ratio == 10_000  # the most that a model may have
    assert config(VaeShape(ratio=100)).ratio == 100


def test_recipes_are_packaged() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        data = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    assert "*.toml" in data["histocodec.train.recipes"]
