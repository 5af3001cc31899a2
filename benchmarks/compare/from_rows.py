"""Make the tables of a benchmark again from its rows, without measuring anything.

    python -m histocodec.benchmarks.compare.from_rows benchmarks/results/val --without crc-img76.webp

`rows.csv` is what `histocodec bench --out` leaves beside its report.
"""

from pathlib import Path

import click

from histocodec.benchmarks.compare.report import rate_sections, ratio_section
from histocodec.benchmarks.compare.summary import summarise
from histocodec.benchmarks.measure.result_rows import Row, from_csv
from histocodec.benchmarks.studies.run_command import run_command
from histocodec.errors import FormatError, UsageError


def rows_of(folder: Path) -> list[Row]:
    """Read the rows of a benchmark's folder. Raises UsageError without rows.csv, FormatError where it is not ours."""
    path = folder / "rows.csv"
    try:
        return from_csv(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except (KeyError, TypeError, ValueError) as exc:
        raise FormatError(f"{path}: not the rows of a benchmark: {exc}") from exc


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--without", "left_out", multiple=True, metavar="IMAGE", help="Leave this image out; may be repeated.")
def main(folder: Path, *, left_out: tuple[str, ...]) -> None:
    """Print rate differences and the paper's ratios from FOLDER/rows.csv."""
    rows = rows_of(folder)
    unknown = set(left_out) - {row.subject.image for row in rows}
    if unknown:
        raise UsageError(f"--without {min(unknown)}: no such image in {folder / 'rows.csv'}")
    summary = summarise([row for row in rows if row.subject.image not in left_out])
    click.echo("\n\n".join([*rate_sections(summary), *ratio_section(summary)]))


if __name__ == "__main__":
    run_command(main)
