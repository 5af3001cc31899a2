"""What is installed is what is here: the explicit package list and the links that stand for it."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("benchmarks", "cli", "formats")


@pytest.fixture(scope="module")
def setuptools_table() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        table: dict[str, object] = tomllib.load(file)["tool"]["setuptools"]
    return table


def folders() -> dict[str, Path]:
    """Every importable folder by its dotted name, the linked ones under their installed names."""
    found = {"histocodec": ROOT / "histocodec"}
    pending = [("histocodec", ROOT / "histocodec")]
    while pending:
        name, folder = pending.pop()
        for child in sorted(folder.iterdir()):
            if child.is_dir() and child.name.isidentifier() and child.name != "__pycache__":
                found[f"{name}.{child.name}"] = child
                pending.append((f"{name}.{child.name}", child))
    return found


def test_the_package_list_names_every_folder_with_code_or_data(setuptools_table: dict[str, object]) -> None:
    with_data = set(setuptools_table["package-data"])  # type: ignore[call-overload]  # a TOML table
    expected = {name for name, folder in folders().items() if name in with_data or any(folder.glob("*.py"))}
    packages = setuptools_table["packages"]
    assert isinstance(packages, list)
    assert len(packages) == len(set(packages))
    assert set(packages) == expected


def test_the_linked_folders_are_installed_under_the_packages_name(
    setuptools_table: dict[str, object],
) -> None:
    assert setuptools_table["package-dir"] == {
        "histocodec": "histocodec",
        **{f"histocodec.{name}": name for name in LINKED},
    }


@pytest.mark.parametrize("name", LINKED)
def test_the_link_points_at_the_folder_beside_the_package(name: str) -> None:
    link = ROOT / "histocodec" / name
    if not link.is_symlink():
        pytest.skip("this copy of the project has no links, as on a system without them")
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name


def test_packages_with_code_have_an_init_file() -> None:
    without = [
        name for name, folder in folders().items() if any(folder.glob("*.py")) and not (folder / "__init__.py").exists()
    ]
    assert not without


def test_every_data_pattern_has_a_known_package(setuptools_table: dict[str, object]) -> None:
    data, packages = setuptools_table["package-data"], setuptools_table["packages"]
    assert isinstance(data, dict)
    assert isinstance(packages, list)
    assert set(data) <= set(packages)


def test_every_data_file_beside_the_code_is_installed(setuptools_table: dict[str, object]) -> None:
    """Pages about the code stay behind, and so do the benchmarks' results."""
    patterns: dict[str, list[str]] = setuptools_table["package-data"]  # type: ignore[assignment]  # a TOML table
    forgotten = [
        path.relative_to(ROOT).as_posix()
        for name, folder in folders().items()
        if not name.startswith("histocodec.benchmarks")
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "README.md"
        if not any(fnmatch(path.name, pattern) for pattern in patterns.get(name, []))
    ]
    assert not forgotten


def test_the_command_and_the_codec_are_declared() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert project["scripts"] == {"histocodec": "histocodec.cli.main:main"}
    assert project["entry-points"]["zarr.codecs"] == {
        "histocodec.latent": "histocodec.formats.container.zarr_codec:LatentCodec"
    }
