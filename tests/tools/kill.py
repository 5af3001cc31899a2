"""Kill encodes at random moments: the old output or the new one is always complete, and the next run finishes.

    python -m tests.tools.kill --moments 50

Plain encodes, `--resume` and `--overwrite` are killed (SIGKILL) at moments from their first to their last. Each encode
is a fork of this process, which has loaded everything, so that it is killed while it encodes, not while Python starts.
`tests/formats/test_journal.py` tests what a commit leaves if it dies between any two of its steps.
"""

import argparse
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import tifffile

from histocodec.cli.main import run
from histocodec.formats.encode import scope
from histocodec.formats.encode.journal import journal_path, old_path, partial_path
from histocodec.sources.synthetic import synthetic_slide
from tests.support.slides import contents
from tests.support.tiny import tiny_model

SHARDS, SHARD_PIXELS = 2, 2048  # small ones, so that an encode takes a moment
OLD, NEW = "20", "50"  # qualities of the container that is replaced, and of its replacement
Contents = dict[str, bytes]


@dataclass(frozen=True)
class Bench:
    """What all scenarios share: a source, a model, and the containers that undisturbed encodes make."""

    folder: Path
    source: Path
    model: Path
    old: Contents
    new: Contents

    @property
    def target(self) -> Path:
        return self.folder / "a.zarr"


@dataclass(frozen=True)
class Scenario:
    """An encode to kill. `begin` sets up the folder; `options` go to the killed encode, `again` to the next one."""

    name: str
    begin: Callable[[Bench], None]
    options: tuple[str, ...]
    again: tuple[str, ...]


def prepare(folder: Path) -> Bench:
    """Make the source, the model and both undisturbed containers in `folder`."""
    scope.SHARD_PIXELS = SHARD_PIXELS
    os.environ.setdefault("SOURCE_DATE_EPOCH", "1764547200")  # so that equal pixels are equal bytes
    source, model = folder / "slide.tif", tiny_model(folder)
    pixels = np.tile(synthetic_slide(1024, 32, seed=2), (1, SHARDS * SHARD_PIXELS // 1024, 1))
    tifffile.imwrite(source, pixels, tile=(32, 1024), photometric="rgb", compression="deflate", metadata=None)
    made = {}
    for quality in (OLD, NEW):
        target = folder / "made.zarr"
        assert _wait(_encode(source, target, model, quality)) == 0
        made[quality] = contents(target)
        shutil.rmtree(target)
    return Bench(folder, source, model, made[OLD], made[NEW])


def _encode(source: Path, target: Path, model: Path, quality: str, *options: str) -> int:
    """Fork a process that encodes. Returns its process id."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        given = ["--model", str(model), "--device", "cpu", "--levels", "0", "--workers", "1", "--effort", "0"]
        given += ["--quality", quality]
        os._exit(run(["encode", str(source), str(target), *given, *options]))
    return child


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _empty(bench: Bench) -> None:
    for path in (bench.target, partial_path(bench.target), old_path(bench.target), journal_path(bench.target)):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _interrupted(bench: Bench) -> None:
    """An encode that was killed after its first shard."""
    _empty(bench)
    child = _encode(bench.source, bench.target, bench.model, NEW)
    while not journal_path(bench.target).exists() or journal_path(bench.target).read_bytes().count(b'"tiles"') == 0:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _wait(child)


def _old_container(bench: Bench) -> None:
    _empty(bench)
    for name, data in bench.old.items():
        (bench.target / name).parent.mkdir(parents=True, exist_ok=True)
        (bench.target / name).write_bytes(data)


SCENARIOS = (
    Scenario("encode", _empty, (), ("--resume",)),
    Scenario("--resume", _interrupted, ("--resume",), ("--resume",)),
    Scenario("--overwrite", _old_container, ("--overwrite",), ("--overwrite",)),
)


def undisturbed(bench: Bench, scenario: Scenario) -> float:
    """How many seconds the scenario's encode takes when nothing kills it."""
    scenario.begin(bench)
    begun = time.perf_counter()
    assert _wait(_encode(bench.source, bench.target, bench.model, NEW, *scenario.options)) == 0
    return time.perf_counter() - begun


def kill_once(bench: Bench, scenario: Scenario, after: float) -> str:
    """Kill one encode after so many seconds and finish it with another. Returns what the kill left, as `_state` does.

    Raises AssertionError where an output is incomplete or the next encode does not finish the job.
    """
    scenario.begin(bench)
    child = _encode(bench.source, bench.target, bench.model, NEW, *scenario.options)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _wait(child)
    left = _state(bench, replaces=scenario.name == "--overwrite")
    if left != "new" or "--overwrite" in scenario.again:
        assert _wait(_encode(bench.source, bench.target, bench.model, NEW, *scenario.again)) == 0
    assert contents(bench.target) == bench.new, (
        f"{scenario.name} killed after {after:.3f} s: the next encode gives another container"
    )
    return left


def _state(bench: Bench, *, replaces: bool) -> str:
    """Which complete output is there: "none", "old" or "new"; "between" is between the two renames of a commit."""
    if bench.target.exists():
        found = contents(bench.target)
        assert found == bench.new or (replaces and found == bench.old), (
            "the output is neither the old container nor the new one"
        )
        return "new" if found == bench.new else "old"
    if not replaces:
        return "none"
    assert contents(old_path(bench.target)) == bench.old and contents(partial_path(bench.target)) == bench.new
    return "between"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m tests.tools.kill")
    parser.add_argument("--moments", type=int, default=50, help="kills in each of the three scenarios")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder))
        for scenario in SCENARIOS:
            left: Counter[str] = Counter()
            for i in range(given.moments):
                if i % 5 == 0:  # the machine's load varies
                    whole = undisturbed(bench, scenario)
                left[kill_once(bench, scenario, 1.2 * whole * rng.random())] += 1
            counts = ", ".join(f"{count} {state}" for state, count in sorted(left.items()))
            print(
                f"{scenario.name}: {given.moments} moments, left behind: {counts}; every next run finished", flush=True
            )


if __name__ == "__main__":
    main()
