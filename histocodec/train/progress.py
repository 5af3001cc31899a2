"""What a run reports after each step, and the log that it writes."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOGGED_STEPS = 20  # steps of which a row of a log is the mean


@dataclass(frozen=True)
class Progress:
    """The result of one step: its number (1, 2, …), the loss, the mean squared error in grey values², bits per pixel,
    and how long it took. A stage that does not measure one of these gives 0."""

    step: int
    loss: float
    mse: float
    bpp: float
    seconds_per_step: float


class TrainingLog:
    """A CSV file with one row every `every` steps, the means over those steps. A resumed run goes on below."""

    COLUMNS = ("step", "loss", "mse", "bpp", "seconds_per_step")

    def __init__(self, path: Path, *, every: int = LOGGED_STEPS) -> None:
        self.path, self.every = path, every
        self._pending: list[Progress] = []
        if not path.exists():
            self._append(self.COLUMNS)

    def add(self, progress: Progress) -> Progress | None:
        """Takes a step. Returns the means where it wrote a row, else None."""
        self._pending.append(progress)
        if progress.step % self.every:
            return None
        count = len(self._pending)
        means = [sum(getattr(p, name) for p in self._pending) / count for name in self.COLUMNS[1:]]
        self._pending.clear()
        row = Progress(progress.step, *means)
        self._append([str(row.step), *(f"{value:.5f}" for value in means)])
        return row

    def _append(self, row: list[str] | tuple[str, ...]) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)


def stage_reporter(stage: str, steps: int, out: Path, report: Callable[[str], None]) -> Callable[[Progress], None]:
    """What a stage of `steps` steps calls after each: it logs to `<out>/<stage>.csv` and reports a line for every
    row."""
    log = TrainingLog(out / f"{stage}.csv")

    def after_step(progress: Progress) -> None:
        row = log.add(progress)
        if row is not None:
            report(f"{stage} step {row.step}/{steps}  loss {row.loss:.4f}  {minutes_left(row, steps):.0f} min left")

    return after_step


def minutes_left(progress: Progress, steps: int) -> float:
    """How long a stage of `steps` steps will still take at the present pace, in minutes."""
    return (steps - progress.step) * progress.seconds_per_step / 60
