"""`histocodec models`: which models are installed, and how to give one to others."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from histocodec.cli.options import OrderedGroup, json_option, option, overwrite_option, path_argument
from histocodec.report import print_facts, print_json, say
from histocodec.text import size_text

if TYPE_CHECKING:
    from histocodec.formats.container.model_files import InstalledModel


@click.group("models", cls=OrderedGroup, short_help="List, export and add models.")
def command() -> None:
    """List the installed models, write one to a file, or add one.

    Models are looked for in the folders of HISTOCODEC_MODELS, in the user's (histocodec/models in XDG_DATA_HOME, by
    default ~/.local/share), and in the package; then in the container's own folder. A model's decoder alone is enough
    to read.

    \b
    Examples:
      histocodec models list
      histocodec models export hyper-6 hyper-6.safetensors --decoder-only
      histocodec models add hyper-6.safetensors
    """


@command.command("list", short_help="List the installed models.")
@json_option
def list_command(*, as_json: bool) -> None:
    """List the installed models: id, family, size, SHA-256 of the file and of its decoder, and where they are.

    \b
    Example:
      histocodec models list --json
    """
    from histocodec.formats.container.model_files import installed_models

    models, problems = installed_models()
    if as_json:
        print_json({"models": models, "problems": problems})
        return
    print_facts([(model.id, model_text(model)) for model in models])
    for problem in problems:
        say(problem)


@command.command("export", short_help="Write an installed model to a file.")
@click.argument("model", metavar="ID")
@path_argument("file")
@option("--decoder-only", is_flag=True, help="Write what decodes only, a smaller file.")
@overwrite_option("FILE")
@json_option
def export_command(model: str, file: Path, *, decoder_only: bool, overwrite: bool, as_json: bool) -> None:
    """Write the installed model ID to FILE, for `histocodec models add` elsewhere.

    \b
    Examples:
      histocodec models export hyper-6 hyper-6.safetensors
      histocodec models export hyper-6 decoder.safetensors --decoder-only
    """
    from histocodec.formats.container.model_files import export_model

    written = export_model(model, file, decoder_only=decoder_only, overwrite=overwrite)
    if as_json:
        print_json(written)
    else:
        print_facts([(written.id, model_text(written))])


@command.command("add", short_help="Install a model file for this user.")
@path_argument("file")
@overwrite_option("another model of the same id, whose decoder stays")
@json_option
def add_command(file: Path, *, overwrite: bool, as_json: bool) -> None:
    """Copy the model FILE to where models are looked for: the first folder of HISTOCODEC_MODELS, or the user's.

    \b
    Example:
      histocodec models add hyper-6.safetensors
    """
    from histocodec.formats.container.model_files import add_model

    model, added = add_model(file, overwrite=overwrite)
    if as_json:
        print_json({**asdict(model), "added": added})
    else:
        print_facts([(model.id, model_text(model) + ("" if added else "\nwas installed already"))])


def model_text(model: "InstalledModel") -> str:
    """Describe a model on a few lines."""
    use = "encodes and decodes" if model.encodes else "decodes only"
    lines = [f"{model.family}, {size_text(model.bytes)}, {use}", model.path, f"SHA-256 {model.sha256}"]
    return "\n".join([*lines, *([f"decoder {model.decoder_sha256}"] if model.encodes else [])])
