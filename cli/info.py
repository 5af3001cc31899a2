"""`histocodec info`: the facts of a container, or of a slide that could become one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import json_option, path_argument
from histocodec.report import print_facts, print_json
from histocodec.text import decibel_text, mpp_text, ratio_text, size_text

if TYPE_CHECKING:
    from histocodec.slide import Slide

SHORT = 100  # characters of a value that are shown; --json has all


@click.command("info", short_help="Say what a container, or any slide, holds.")
@path_argument("src")
@click.option(
    "--map",
    "picture",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Draw the stored PSNR of every chunk of level 0 over the overview.",
)
@click.option("--overwrite", is_flag=True, help="Replace the PNG of --map.")
@json_option
def command(src: Path, *, picture: Path | None, overwrite: bool, as_json: bool) -> None:
    """Say what the container SRC holds: sizes, resolution, model, bytes, fidelity. Nothing is decoded.

    SRC may also be a slide that is not compressed yet.

    \b
    Examples:
      histocodec info slide.zarr
      histocodec info slide.svs --json
      histocodec info slide.zarr --map fidelity.png
    """
    from histocodec.formats.container.read import is_container

    if picture is not None and picture.suffix.lower() != ".png":
        raise click.UsageError(f"--map {picture}: its name has to end in .png")
    if is_container(src):
        from histocodec.formats.decode.describe import describe
        from histocodec.formats.decode.images import check_output

        if picture is not None:
            check_output(picture, overwrite=overwrite)
        facts = describe(src)
        if picture is not None:
            draw_map(src, picture)
    elif picture is not None:
        raise click.UsageError(f"--map: {src} is no container, and its fidelity was never measured")
    else:
        from histocodec.sources import open_slide

        with open_slide(src) as slide:
            facts = slide_facts(slide)
    if as_json:
        print_json(facts)
    else:
        print_facts([(name.replace("_", " "), as_text(name, value)) for name, value in facts.items()])


def draw_map(src: Path, picture: Path) -> None:
    from histocodec.cli.fidelity_map import fidelity_map
    from histocodec.formats.container.read import Container
    from histocodec.formats.decode.images import write_region

    write_region(picture, fidelity_map(Container.open(src)), mpp=None, icc=None)


def slide_facts(slide: "Slide") -> dict[str, object]:
    """What a slide says about itself; images are named and not decoded."""
    vendor = slide.properties.get("openslide.vendor")
    return {
        "kind": "slide" if vendor is None else f"slide ({vendor})",
        "name": slide.name,
        "width": slide.levels[0].width,
        "height": slide.levels[0].height,
        "levels": [
            {"width": level.width, "height": level.height, "downsample": level.downsample} for level in slide.levels
        ],
        "mpp": slide.mpp,
        "objective_power": slide.objective_power,
        "background": slide.background,
        "icc_bytes": None if slide.icc_profile is None else len(slide.icc_profile),
        "associated": list(slide.associated),
        "properties": dict(slide.properties),
    }


def as_text(name: str, value: object) -> str:
    """A value for people, on as many lines as it needs. `name` says in what unit it is."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() if name == "bytes" or name.endswith("_bytes"):
            return size_text(value)
        case float() if name.startswith("ratio"):
            return ratio_text(value)
        case float() if name.endswith("psnr"):
            return decibel_text(value)
        case float() if name == "overhead":
            return f"{100 * value:.2g} %"
        case float():
            return f"{value:.6g}"
        case Mapping():
            return "\n".join(f"{key}: {_short(as_text(str(key), one))}" for key, one in value.items()) or "-"
        case [float() | int() as x, float() | int() as y] if name == "mpp":
            return mpp_text((x, y))
        case list() | tuple() if any(isinstance(one, Mapping) for one in value):
            return "\n".join(f"{index}: {_line(one)}" for index, one in enumerate(value))
        case list() | tuple():
            return ", ".join(str(one) for one in value) or "-"
    return str(value)


def _line(value: object) -> str:
    """A level, on one line: its size first, the rest by name."""
    if not isinstance(value, Mapping):
        return _short(str(value))
    rest = dict(value)
    parts = []
    if "width" in rest and "height" in rest:
        parts.append(f"{rest.pop('width')} x {rest.pop('height')}")
    parts += [f"{name.replace('_', ' ')} {as_text(name, one)}" for name, one in rest.items() if one is not None]
    return ", ".join(parts)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else line[: SHORT - 1] + "…"
