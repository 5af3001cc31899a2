"""`histocodec info`: show the facts of a container, or of a slide that could become one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from histocodec.cli.encode import left_out_text
from histocodec.cli.options import Location, json_option, location_argument, option, overwrite_option
from histocodec.report import print_facts, print_json, say
from histocodec.text import decibel_text, mpp_text, ratio_text, size_text

if TYPE_CHECKING:
    from histocodec.cli.fidelity_map import Measure
    from histocodec.slide import Slide

MEASURES = ("psnr", "block")  # those of `fidelity_map`, which is imported when it draws
MAX_CHARACTERS = 100  # of a value that is shown; --json has all of it
MAX_PROPERTIES = 12  # of a container; likewise
# What people read for a key of the JSON, where underscores replaced by spaces do not do.
NAMES = {
    "mpp": "resolution",
    "bpp": "bits per pixel",
    "icc_bytes": "ICC profile",
    "associated": "associated images",
    "psnr": "PSNR",
    "worst_psnr": "worst chunk",
    "worst_block_error": "worst block error",
}
LEVEL_LINES = (  # keys of a level, line by line; its size stands before them
    ("downsample", "dtype", "quality", "bytes", "bpp"),
    ("psnr", "worst_psnr", "worst_block_error"),
    ("chunks", "coded", "raised", "lossless", "background"),
)


@click.command("info", short_help="Show what a container, or any slide, holds.")
@location_argument("src")
@option(
    "--map",
    "picture",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="Draw the fidelity map of level 0, half transparent over the slide.",
)
@option(
    "--map-of",
    "measure",
    type=click.Choice(MEASURES),
    default=MEASURES[0],
    show_default=True,
    help="What --map shows of each chunk: its PSNR, or that of its worst block of 16 x 16 pixels.",
)
@option("--digest", is_flag=True, help="Print the container's digest alone: the SHA-256 to sign or to compare.")
@overwrite_option("the PNG of --map")
@json_option
def command(
    src: Location, *, picture: Path | None, measure: "Measure", digest: bool, overwrite: bool, as_json: bool
) -> None:
    """Show what the container SRC holds: sizes, resolution, model, fidelity, and where it is from.

    Nothing is decoded, but for --map where there is no overview. SRC is a path or a URL (https, s3, gs, az); or a slide
    that is not compressed yet.

    \b
    Examples:
      histocodec info slide.hcz
      histocodec info slide.hcz --map fidelity.png
      histocodec info slide.hcz --digest
      histocodec info https://example.org/slide.hcz
      histocodec info slide.svs --json
    """
    if digest and (as_json or picture is not None):
        raise click.UsageError("--digest prints one line; leave --json and --map out")
    from histocodec.formats.container.read import names_container

    if picture is not None and picture.suffix.lower() != ".png":
        raise click.UsageError(f"--map {picture}: the map is a PNG; choose a name that ends in .png")
    container = names_container(src)
    if digest:
        click.echo(digest_of(src, container=container))
        return
    if container:
        from histocodec.formats.decode.describe import describe
        from histocodec.formats.decode.images import check_output

        if picture is not None:
            check_output(picture, overwrite=overwrite)
        facts = describe(src)
        if picture is not None:
            draw_map(src, picture, measure)
    elif picture is not None:
        raise click.UsageError(f"--map: {src} is not a container, so it has no fidelity map")
    else:
        from histocodec.sources import open_slide

        with open_slide(src) as slide:
            facts = slide_facts(slide)
    if as_json:
        print_json(facts)
    elif container:
        print_facts(container_facts(facts))
    else:
        print_facts([(display_name(key), as_text(key, value)) for key, value in facts.items()])


def digest_of(src: Location, *, container: bool) -> str:
    """Return the digest of the container `src`. Raises UnsupportedError where it has none."""
    from histocodec.errors import UnsupportedError
    from histocodec.formats.container.read import open_container

    if not container:
        raise UnsupportedError(f"{src}: is not a container, so it has no digest")
    digest = open_container(src).attributes.provenance.digest
    if not digest:
        raise UnsupportedError(f"{src}: is of version 1, which has no digest; encode the slide again for one")
    return digest


def container_facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of what `describe` says of a container, for people: on one screen."""
    source, background = facts["source"], facts["background"]
    overview = facts["overview"] and f"{facts['overview'][0]} x {facts['overview'][1]}"
    resolution = as_text("mpp", facts["mpp"]) if facts["mpp"] else "resolution unknown"
    embedded = "its decoder is embedded" if facts["model_embedded"] else "not embedded"
    listed = facts["bytes"] is not None  # a web server lists no folders
    size = size_text(facts["bytes"]) if listed else "size unknown"
    rows = [
        ("container", [f"{facts['path']}: {size}, format version {facts['format_version']}"]),
        ("uid", [facts["uid"]]),
        ("digest", [facts["digest"]]),
        ("made", [facts["generator"], facts["created"], _settings_text(facts["settings"])]),
        ("source", [source["name"], source["vendor"], as_text("bytes", source["bytes"])]),
        ("", [source["sha256"] and f"SHA-256 {source['sha256']}"]),
        ("pixels", [f"{facts['width']} x {facts['height']}", resolution, _power_text(facts)]),
        *(_rate_rows(facts) if listed else []),
        ("levels", [as_text("levels", facts["levels"])]),
        ("chunks", [f"{facts['chunk']} x {facts['chunk']} pixels", f"background {background['mode']}"]),
        ("model", [f"{facts['model']} ({facts['model_family']}), {facts['channels']} channels", embedded]),
        ("", [f"SHA-256 {facts['model_sha256']}"]),
        ("features", [f"{name} ({kind})" for name, kind in facts["features"].items()]),
        ("extensions", facts["extensions"]),
        ("overview", [overview]),
        ("images", facts["associated"]),
        ("ICC profile", [facts["icc_profile_bytes"] and size_text(facts["icc_profile_bytes"])]),
        ("left out", [left_out_text(facts["dropped"])]),
        ("properties", [_properties_text(facts["properties"])]),
    ]
    texts = [(name, ", ".join(str(part) for part in parts if part)) for name, parts in rows]
    return [(name, text) for name, text in texts if text]


def _rate_rows(facts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    return [
        ("rate", [f"{facts['bpp']:.4f} bits per pixel of level 0", f"{ratio_text(facts['ratio_raw'])} to raw RGB"]),
        ("", [f"{ratio_text(facts['ratio_source_file'])} to the source file, {_level0_text(facts)}"]),
        ("bytes", [f"latents {size_text(facts['latent_bytes'])}", f"lossless {size_text(facts['lossless_bytes'])}"]),
    ]


def _settings_text(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{display_name(name)} {as_text(name, value)}" for name, value in settings.items())


def _power_text(facts: Mapping[str, Any]) -> str:
    return "" if facts["objective_power"] is None else f"objective {facts['objective_power']:g}x"


def _level0_text(facts: Mapping[str, Any]) -> str:
    return f"{ratio_text(facts['ratio_level0'])} to raw RGB, both of level 0 alone"


def _properties_text(properties: Mapping[str, str]) -> str:
    names = [name for name in properties if not name.startswith("openslide.level")][:MAX_PROPERTIES]  # levels are above
    lines = [_shortened(f"{name}: {properties[name]}") for name in names]
    others = len(properties) - len(names)
    return "\n".join([*lines, *([f"and {others} more; --json has all"] if others else [])])


def draw_map(src: Location, picture: Path, measure: "Measure") -> None:
    """Draw the fidelity map of the container `src` into the PNG `picture`, over its overview, or, where it has none,
    over a small picture that is decoded."""
    import numpy as np

    from histocodec.cli.fidelity_map import LONGEST, fidelity_map
    from histocodec.errors import MissingModelError
    from histocodec.formats.container.read import open_container
    from histocodec.formats.decode.images import write_region
    from histocodec.formats.decode.slide import open_compressed

    container = open_container(src)
    below = container.overview()
    if below is None:
        try:
            with open_compressed(src) as slide:
                below = np.asarray(slide.get_thumbnail((LONGEST, LONGEST)).convert("RGB"))
        except MissingModelError as exc:
            say(f"the map is drawn without the slide beneath: {exc}")
    write_region(picture, fidelity_map(container, below, measure=measure), mpp=None, icc=None)


def slide_facts(slide: "Slide") -> dict[str, object]:
    """Return what a slide says about itself; associated images are named, not decoded."""
    from histocodec.slide import notes_of

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
        "notes": list(notes_of(slide)),
        "properties": dict(slide.properties),
    }


def display_name(key: str) -> str:
    """Return what people read for a key of the JSON."""
    return NAMES.get(key, key.replace("_", " "))


def as_text(key: str, value: object) -> str:
    """Format a value for people, on as many lines as it needs; its key says in what unit it is."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() if key == "bytes" or key.endswith("_bytes"):
            return size_text(value)
        case float() if key.startswith("ratio"):
            return ratio_text(value)
        case float() if key.endswith("psnr"):
            return decibel_text(value)
        case float() if key == "overhead":
            return f"{100 * value:.2g} %"
        case float() if key == "bpp":
            return f"{value:.4f}"
        case float() if key == "worst_block_error":
            return f"{value:.2f} grey values"
        case float():
            return f"{value:.6g}"
        case Mapping():
            return "\n".join(f"{name}: {_shortened(as_text(str(name), item))}" for name, item in value.items()) or "-"
        case [float() | int() as x, float() | int() as y] if key == "mpp":
            return f"{mpp_text((x, y))} per pixel"
        case [*names] if key == "dropped" and names:
            return left_out_text([str(name) for name in names])
        case list() | tuple() if key == "levels" and all(isinstance(item, Mapping) for item in value):
            return "\n".join(_level_text(number, level) for number, level in enumerate(value))
        case list() | tuple() if key == "notes":
            return "\n".join(str(note) for note in value) or "-"
        case list() | tuple() if any(isinstance(item, Mapping) for item in value):
            return "\n".join(_shortened(_joined(item, tuple(item))) for item in value)
        case list() | tuple():
            return ", ".join(str(item) for item in value) or "-"
    return str(value)


def _level_text(number: int, level: Mapping[str, object]) -> str:
    """Describe a level on as many lines as there are keys for: its size and rate, its fidelity, its chunks."""
    lines = [_joined(level, keys) for keys in LEVEL_LINES]
    derived = "derived, " if level.get("derived") else ""
    first = f"{number}: {level['width']} x {level['height']}, {derived}{lines[0]}"
    return "\n".join([first, *(f"   {line}" for line in lines[1:] if line)])


def _joined(values: Mapping[str, object], keys: tuple[str, ...]) -> str:
    present = [key for key in keys if values.get(key) is not None]
    return ", ".join(f"{display_name(key)} {as_text(key, values[key])}" for key in present)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1] + "…"
