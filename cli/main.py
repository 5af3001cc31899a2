"""`histocodec`: the commands, each loaded when it is needed, and the message and exit code of every failure."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType

import click

from histocodec.errors import HistocodecError
from histocodec.text import printable

COMMANDS = (
    "encode", "decode", "export", "info", "verify", "seal", "pack", "unpack", "models", "embed", "index", "search",
    "umap", "cohort", "train", "bench", "demo", "warm", "serve",
)  # fmt: skip
DEBUG_VARIABLE = "HISTOCODEC_DEBUG"  # set to anything, errors come with a traceback
FAILED, USAGE, UNSUPPORTED, INTERRUPTED = 1, 2, 4, 130


class LazyGroup(click.Group):
    """A group that finds the command `encode` as `command` in `histocodec.cli.encode`.

    Those modules import click alone, and what does the work only when it is to be done: `--help` answers at once.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"histocodec.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


def _print_version(context: click.Context, parameter: click.Parameter, requested: bool) -> None:
    if requested and not context.resilient_parsing:
        from histocodec.version import VERSION

        click.echo(f"histocodec {VERSION}")
        context.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def commands() -> None:
    """Compress whole-slide pathology images, and read any region back.

    \b
    Examples:
      histocodec encode slide.svs slide.hcz
      histocodec decode slide.hcz region.png --region 10000,8000,1024,1024

    \b
    Exit codes:
      0 done, 1 failed, 2 wrong usage, 3 damaged file,
      4 unsupported input or a missing model or package,
      5 a server that cannot be reached or refuses, 130 interrupted
    """


def main() -> None:
    """Run the command line of this process, and exit."""
    sys.exit(run())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a failure is one line on stderr.

    `arguments` are those of the shell, without the program's name; sys.argv's by default.
    """
    try:
        with _termination_as_interrupt():
            result = commands.main(arguments, prog_name="histocodec", standalone_mode=False)
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        return USAGE
    except click.UsageError as exc:
        hint = f" (see {exc.ctx.command_path} --help)" if exc.ctx is not None else ""
        return _failed(exc.format_message().removesuffix(".") + hint, USAGE)
    except click.ClickException as exc:
        return _failed(exc.format_message(), exc.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _failed("interrupted", INTERRUPTED)
    except HistocodecError as exc:
        return _failed(str(exc), exc.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone. Python would complain once more when it flushes at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except MemoryError:
        return _failed("not enough memory", FAILED)
    except ModuleNotFoundError as exc:
        return _failed(f"this needs the Python package {exc.name}, which is not installed", UNSUPPORTED)
    except Exception as exc:
        hint = "" if os.environ.get(DEBUG_VARIABLE) else f" (set {DEBUG_VARIABLE}=1 to see where)"
        return _failed(f"unexpected {type(exc).__name__}: {exc}{hint}", FAILED)
    return result if isinstance(result, int) else 0


def _failed(message: str, exit_code: int) -> int:
    """Print the message on one line; to be called in an except block."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    with suppress(OSError):
        click.echo(f"histocodec: error: {printable(' '.join(message.split()))}", err=True)
    return exit_code


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that it can clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
