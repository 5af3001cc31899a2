"""How a study, or another module with a command, runs as a program."""

import click

from histocodec.errors import HistocodecError


def run_command(command: click.Command) -> None:
    """Run a command with the arguments of this process; an error of ours is one line on stderr and exit code 1."""
    try:
        command()
    except HistocodecError as exc:
        raise SystemExit(f"error: {exc}") from exc
