"""`histocodec info`: the facts of a container, or of a slide that could become one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import json_option, path_argument
from histocodec.cli.report import mpp_text, print_facts, print_json, size_text

if TYPE_CHECKING:
    from histocodec.slide import Slide

SHORT = 100  # characters of a value that are shown; --json has all


@click.command("info", short_help="Say what a container, or any slide, holds.")
@path_argument("src")
@json_option
def command(src: Path, *, as_json: bool) -> None:
    """Say what the container SRC holds: sizes, resolution, model, bytes, fidelity. Nothing is decoded.

    SRC may also be a slide that is not compressed yet.

    \b
    Examples:
      histocodec info slide.zarr
      histocodec info slide.svs --json
    """
    from histocodec.formats.container import Container

    if Container.is_one(src):
        from histocodec.formats.describe import describe

        facts = describe(src)
    else:
        from histocodec.sources import open_slide

        with open_slide(src) as slide:
            facts = slide_facts(slide)
    if as_json:
        print_json(facts)
    else:
        print_facts([(name.replace("_", " "), as_text(name, value)) for name, value in facts.items()])


def slide_facts(slide: "Slide") -> dict[str, object]:
    """What a slide says about itself; images are named and not decoded."""
    vendor = slide.properties.get("openslide.vendor")
    return {
        "kind": "slide" if vendor is None else f"slide ({vendor})",
        "name": slide.name,
        "width": slide.levels[0].width,
        "height": slide.levels[0].height,
        "levels": [
            {"width": level.width, "height": level.height, "downsample": level.downsample}
            for level in slide.levels
        ],
        "mpp": slide.mpp,
        "objective_power": slide.objective_power,
        "background": slide.background,
        "icc_bytes": None if slide.icc_profile is None else len(slide.icc_profile),
        "associated": list(slide.associated),
        "properties": dict(slide.properties),
    }


def as_text(name: str, value: object) -> str:
    """A value for people, on as many lines as it needs."""
    if name == "mpp" and isinstance(value, (list, tuple)):
        return mpp_text([float(one) for one in value])
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (name == "bytes" or name.endswith("_bytes"))
    ):
        return size_text(value)
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_short(as_text(str(key), one))}" for key, one in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        if any(isinstance(one, Mapping) for one in value):
            return "\n".join(
                f"{index}: {_line(one)}" if isinstance(one, Mapping) else _short(str(one))
                for index, one in enumerate(value)
            )
        return ", ".join(str(one) for one in value) or "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def _line(value: Mapping[str, object]) -> str:
    """A level, on one line: its size first, the rest by name."""
    rest = dict(value)
    parts = []
    if "width" in rest and "height" in rest:
        parts.append(f"{rest.pop('width')} x {rest.pop('height')}")
    parts += [f"{name} {as_text(name, one)}" for name, one in rest.items() if one is not None]
    return ", ".join(parts)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else line[: SHORT - 1] + "…"
