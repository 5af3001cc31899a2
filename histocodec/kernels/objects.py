"""Machine code on disk: what was compiled once is loaded by later processes, without numba.

Each combination of a kernel and its argument types is a file, in the first of these folders that can be written to, and
is looked for in all of them:

    NUMBA_CACHE_DIR/histocodec          where that variable is set: there alone
    histocodec/kernels/__pycache__/…    beside the code, as Python's own compiled files are
    ~/.cache/histocodec/kernels         or in XDG_CACHE_HOME

A file is used only if its digest fits, its name's digest is that of this kernel's source, this processor and these
versions, and nobody could have written it but this user, root, or whoever owns the code beside it. Anything else is
compiled anew. Files are written under another name first, so that no process reads half of one.
"""

import ctypes
import hashlib
import json
import os
import stat
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from histocodec.kernels.processor import identity

MAGIC = b"histocodec kernel 1\n"
SYMBOL = "histocodec_kernel"  # the function in each object
MAX_BYTES = 64 << 20  # of a file; the largest has less than one of them
CONSTANT = "instructions"  # the parameter that each of its values is compiled for by itself
Kind = Any  # what an argument is: a type, (dtype, dimensions, C-contiguous) of an array, a tuple of kinds, or `Known`
Result = Any  # "nothing", "int", "bool", "float", or a list of these

_Entry = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)


@dataclass(frozen=True)
class Known:
    """The kind of an int that is part of the code."""

    value: int


@dataclass(frozen=True)
class Stored:
    """What a file holds: an object file, and what its function returns. No object where a kernel is left to numba."""

    object: bytes
    result: Result


@dataclass(frozen=True, eq=False)
class Code:
    """Machine code in this process. `function` takes the address of int64s: `room` for results, then the arguments."""

    function: Callable[[int], int]
    room: list[int]
    results: Callable[["array[int]"], Any]
    owner: object  # of the memory that the code is in


def load(found: Stored) -> Code:
    """The machine code of an object file, ready to be called."""
    import llvmlite.binding as llvm

    _initialise()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(found.object))
    engine.finalize_object()
    result = found.result
    size = len(result) if isinstance(result, list) else int(result != "nothing")
    return Code(_Entry(engine.get_function_address(SYMBOL)), [0] * size, _reader(result), engine)


@lru_cache(maxsize=1)
def _initialise() -> None:
    import llvmlite.binding as llvm

    with suppress(RuntimeError):  # since llvmlite 0.45, which does it by itself
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


def _reader(result: Result) -> Callable[["array[int]"], Any]:
    """What makes a result of the int64s that the code has written."""
    if result == "nothing":
        return lambda memory: None
    if result == "int":
        return lambda memory: memory[0]
    if result == "bool":
        return lambda memory: memory[0] != 0
    if result == "float":
        return lambda memory: float(np.array(memory[:1], np.int64).view(np.float64)[0])
    parts = [_reader(part) for part in result]
    return lambda memory: tuple(part(memory[n : n + 1]) for n, part in enumerate(parts))


# Files.


def stored(kernel: str, digest: str, types: str) -> Stored | None:
    """What was compiled before of a kernel for arguments of these types; None where nothing was, or nothing sound."""
    name = _file_name(kernel, digest, types)
    for folder in _folders():
        data = _trusted(folder / name)
        if data is not None and (found := _parsed(data)) is not None:
            return found
    return None


def store(kernel: str, digest: str, types: str, found: Stored) -> None:
    """Keeps what was compiled, in the first folder that can be written to, if there is one."""
    body = json.dumps({"kernel": kernel, "types": types, "result": found.result}).encode() + b"\n" + found.object
    folder = writable_folder()
    if folder is None:
        return
    with suppress(OSError):
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + hashlib.sha256(body).digest() + body)
            os.chmod(temporary, 0o644)
            os.replace(temporary, folder / _file_name(kernel, digest, types))
        except OSError:
            os.unlink(temporary)
            raise


def writable_folder() -> Path | None:
    """The first folder that can be written to, made where it is not there."""
    for folder, mode in _places():
        try:
            folder.mkdir(mode, parents=True, exist_ok=True)
        except OSError:
            continue
        if _is_private(folder.stat()) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


def _folders() -> Iterator[Path]:
    """The folders that are there, and that nobody else can write to."""
    for folder, _ in _places():
        with suppress(OSError):
            if _is_private(folder.stat()):
                yield folder


def _places() -> list[tuple[Path, int]]:
    """The folders of the module's docstring, each with its permissions."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        return [(Path(named, "histocodec"), 0o755)]
    cache = os.environ.get("XDG_CACHE_HOME", "")
    home = cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")
    places = [(Path(__file__).parent / "__pycache__" / "kernels", 0o755)]
    return [*places, (Path(home, "histocodec", "kernels"), 0o700)] if os.path.isabs(home) else places


def _is_private(status: os.stat_result) -> bool:
    """Whether only this user, root, or whoever owns this code can have written a file or folder."""
    if not hasattr(os, "geteuid"):
        return True
    owners = (os.geteuid(), 0, os.stat(__file__).st_uid)
    return status.st_uid in owners and not status.st_mode & 0o022


def _trusted(path: Path) -> bytes | None:
    """The content of a regular file that nobody else can have written, or None."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or not _is_private(status) or status.st_size > MAX_BYTES:
            return None
        return file.read()


def _parsed(data: bytes) -> Stored | None:
    """What a file holds, or None where it is cut short or altered."""
    start = len(MAGIC) + 32
    body = data[start:]
    if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        return None
    header, _, code = body.partition(b"\n")
    return Stored(code, json.loads(header)["result"])


def _file_name(kernel: str, digest: str, types: str) -> str:
    text = "\n".join((kernel, digest, types, _environment()))
    return f"{kernel.rpartition('.')[2]}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


# What the code depends on.


@lru_cache(maxsize=1)
def _environment() -> str:
    """The processor and the versions of Python, numba, llvmlite and this package's compiler, which need not be
    imported."""
    versions = []
    for package in ("numba", "llvmlite"):
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, f"{package} is a dependency"
        versions.append(Path(spec.origin).with_name("_version.py").read_text())
    return repr((sys.implementation.cache_tag, object.__basicsize__, versions, identity(), _sources()))


@lru_cache(maxsize=1)
def _sources() -> str:
    """The SHA-256 of this package's files, which write the code of intrinsics and of calls from Python."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def digest_of(function: Callable[..., Any]) -> str:
    """The SHA-256 of a function's bytecode, its constants, and likewise of all kernels that it can call. Raises
    TypeError where it uses a global that is no constant."""
    seen: dict[str, None] = {}
    lines = list(_described(function, seen))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _described(function: Any, seen: dict[str, None]) -> Iterator[str]:
    name = f"{function.__module__}.{function.__qualname__}"
    if name in seen:
        return
    seen[name] = None
    yield name
    yield repr((function.__defaults__, function.__code__.co_varnames[: function.__code__.co_argcount]))
    names: dict[str, None] = {}
    yield from _code(function.__code__, names)
    for each in names:
        if each in function.__globals__:
            yield f"{each} ="
            yield from _value(each, function.__globals__[each], seen)
    for each, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield f"{each} ="
        yield from _value(each, cell.cell_contents, seen)


def _code(code: CodeType, names: dict[str, None]) -> Iterator[str]:
    names.update(dict.fromkeys(code.co_names))
    yield code.co_code.hex()
    yield repr(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant, names)
        else:
            yield repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)


def _value(name: str, value: Any, seen: dict[str, None]) -> Iterator[str]:
    if hasattr(value, "function") and isinstance(value.function, FunctionType):  # a kernel
        yield from _described(value.function, seen)
    elif hasattr(value, "emit"):  # an intrinsic, whose code `_sources` covers
        yield value.name
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape} {value.tobytes().hex()}"
    elif isinstance(value, ModuleType):
        yield value.__name__
    elif isinstance(value, type | BuiltinFunctionType | np.ufunc) or hasattr(value, "__wrapped__"):
        yield getattr(value, "__name__", name)
    elif isinstance(value, tuple):
        for each in value:
            yield from _value(name, each, seen)
    elif isinstance(value, bool | int | float | str | bytes | None | np.generic | np.dtype):
        yield repr(value)
    elif isinstance(value, FunctionType):
        yield from _described(value, seen)
    else:
        raise TypeError(f"a kernel uses {name}, a {type(value).__name__}: no constant, and no kernel")
