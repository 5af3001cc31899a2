"""Kernels: what they take and return, and their machine code on disk."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from histocodec.kernels import objects
from histocodec.kernels.jit import Kernel, jit

PROGRAM = """
import sys
import numpy as np
from histocodec.kernels.jit import compiled_kernels, jit

FACTOR = 3

@jit
def scaled(values, more):
    total = 0
    for i in range(values.size):
        total += FACTOR * values[i] + more
    return total

print(scaled(np.arange(5), 2), compiled_kernels(), "numba" in sys.modules)
"""


def as_kernel(function: Callable[..., Any]) -> Kernel:
    """A function that `jit` decorated, as what it is."""
    return cast(Kernel, function)


def run(program: str, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **variables}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)


def files(cache: Path) -> list[Path]:
    """The objects in a folder of compiled kernels."""
    return [path for path in (cache / "histocodec").iterdir() if path.name != "lock"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what PROGRAM compiles."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "program.py").write_text(PROGRAM)
    first = run(PROGRAM, cache)
    assert first.stdout.split() == ["40", "1", "True"]
    yield cache


@pytest.fixture
def cache(compiled: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for a test to spoil."""
    folder = tmp_path / "histocodec"
    folder.mkdir(mode=0o700)
    for path in files(compiled):
        (folder / path.name).write_bytes(path.read_bytes())
    return tmp_path


@jit
def everything(
    number: int, single: Any, double: float, flag: bool, pair: tuple[int, int], values: NDArray[np.int16]
) -> tuple[float, bool, int, float]:
    scratch = np.zeros(values.shape[0], np.int64)  # memory of its own
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            scratch[i] += values[i, j] * pair[0]
    most = scratch[0]
    for i in range(1, values.shape[0]):
        most = max(most, scratch[i])
    return double * 2 + number, not flag, most + pair[1], single


@pytest.mark.parametrize("change", ["whole", "columns", "backwards", "transposed"])
def test_a_kernel_computes_what_its_function_does(change: str) -> None:
    values = np.arange(-20, 100, dtype=np.int16).reshape(12, 10)
    values = {
        "whole": values, "columns": values[:, 2:8], "backwards": values[::-2], "transposed": values.T,
    }[change]  # fmt: skip
    arguments = (-(2**40), np.float32(0.1), 0.25, True, (3, -7), values)
    expected = everything.__wrapped__(*arguments)  # type: ignore[attr-defined]  # as functools leaves it
    result = everything(*arguments)
    assert result == expected
    assert [type(part) for part in result] == [float, bool, int, float]


@jit
def written(values: NDArray[np.uint8]) -> None:
    for i in range(values.size):
        values[i] = i


def test_a_kernel_writes_to_its_arguments_and_returns_nothing() -> None:
    values = np.zeros(5, np.uint8)
    assert written(values) is None  # type: ignore[func-returns-value]  # which is what is tested
    assert values.tolist() == [0, 1, 2, 3, 4]


@jit
def added(x: Any, y: Any) -> Any:
    return x + y


def test_numbers_keep_their_types() -> None:
    assert added(np.uint8(200), np.uint8(100)) == 300  # as numba adds small integers
    assert added(np.uint32(2**32 - 1), np.uint32(1)) == 2**32
    assert added(2**62, 2**62) == -(2**63)  # wraps, as int64 does
    assert added(1, 0.5) == 1.5
    assert added(x=2, y=3) == 5


@jit
def chosen(instructions: int, x: int) -> int:
    return x + (10 if instructions == 1 else 20)


@jit
def by_instructions(instructions: int, x: int) -> Any:
    if instructions == 0:
        return x.no_such_attribute  # type: ignore[attr-defined]  # which does not compile
    if instructions <= 2:
        return chosen(instructions, x) * instructions
    return chosen(instructions, x) + chosen(1, x)


def test_instructions_are_compiled_in_without_the_branches_of_others() -> None:
    assert [by_instructions(n, 1) for n in (1, 2, 3, 1)] == [11, 42, 32, 11]
    assert [by_instructions(instructions=n, x=5) for n in (1, 2, 3)] == [15, 50, 40]
    with pytest.raises(Exception, match="no_such_attribute"):
        by_instructions(0, 1)
    assert len(as_kernel(by_instructions).codes) == 3


@jit
def doubled(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return values * 2


def test_a_kernel_that_returns_an_array_is_left_to_numba() -> None:
    assert doubled(np.arange(3)).tolist() == [0, 2, 4]
    assert doubled(np.arange(3)).tolist() == [0, 2, 4]


def test_a_stored_kernel_needs_no_numba(compiled: Path) -> None:
    again = run(PROGRAM, compiled)
    assert again.stdout.split() == ["40", "0", "False"]
    assert not again.stderr


def test_a_kernel_is_compiled_anew_when_a_constant_changes(cache: Path) -> None:
    changed = run(PROGRAM.replace("FACTOR = 3", "FACTOR = 4"), cache)
    assert changed.stdout.split() == ["50", "1", "True"]
    assert len(files(cache)) == 2


@pytest.mark.parametrize("damage", ["cut", "altered", "empty", "foreign", "link", "writable by all"])
def test_a_file_that_is_damaged_or_not_ours_is_compiled_anew(cache: Path, damage: str) -> None:
    (path,) = files(cache)
    data = path.read_bytes()
    spoilt = {
        "cut": data[:-1],
        "altered": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
        "empty": b"",
        "foreign": b"\x7fELF" + data,
    }.get(damage, data)
    if damage == "link":
        path.rename(cache / "elsewhere")
        path.symlink_to(cache / "elsewhere")
    else:
        path.write_bytes(spoilt)
    if damage == "writable by all":
        path.chmod(0o666)
    assert run(PROGRAM, cache).stdout.split() == ["40", "1", "True"]
    assert not path.is_symlink()
    assert path.read_bytes() == data
    assert run(PROGRAM, cache).stdout.split() == ["40", "0", "False"]


def test_a_folder_that_others_can_write_to_is_not_used(cache: Path) -> None:
    (cache / "histocodec").chmod(0o777)
    assert run(PROGRAM, cache).stdout.split() == ["40", "1", "True"]


def test_where_nothing_can_be_written_kernels_still_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert run(PROGRAM, tmp_path / "file").stdout.split() == ["40", "1", "True"]


def test_without_numba_s_compiler_a_kernel_is_plain_python(tmp_path: Path) -> None:
    assert run(PROGRAM, tmp_path, NUMBA_DISABLE_JIT="1").stdout.split() == ["40", "0", "False"]
    assert not (tmp_path / "histocodec").exists()


def test_of_processes_that_start_together_one_compiles(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    results = [process.communicate()[0].split() for process in processes]
    assert [result[0] for result in results] == ["40"] * 3
    assert sorted(result[1] for result in results) == ["0", "0", "1"]


THREADS_AND_FORK = (
    PROGRAM
    + """
import os
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    assert set(pool.map(lambda _: scaled(np.arange(7), 1), range(20))) == {70}
child = os.fork()
if not child:
    os._exit(scaled(np.arange(5), 2) != 40 or scaled(np.arange(5, dtype=np.uint8), 2) != 40)
assert os.waitpid(child, 0)[1] == 0
"""
)


def test_threads_and_forked_children_run_kernels(cache: Path) -> None:
    run(THREADS_AND_FORK, cache)


FACTOR = 2


def inner(x: int) -> int:
    return x * FACTOR


def test_the_digest_of_a_kernel_is_that_of_all_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = jit(inner)

    def outer(x: int) -> int:
        return kernel(x) + 1

    before = objects.digest_of(outer)
    assert objects.digest_of(outer) == before
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert objects.digest_of(outer) != before


def test_a_kernel_that_uses_no_constant_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FACTOR", [2])
    with pytest.raises(TypeError, match="FACTOR, a list"):
        as_kernel(jit(inner))(1)
