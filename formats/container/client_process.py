"""Requests by way of another process, where a process was forked and so cannot make them with obstore itself.

The forked child starts it with the first request, as a fresh Python, and shares it among its threads; it ends with the
one that started it. Questions and answers go through its standard input and output, numbered, in any order: a line of
JSON, then the bytes that it speaks of.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import IO, Any, TypeVar

from histocodec import errors
from histocodec.errors import HistocodecError, StoreError
from histocodec.forks import renew_in_children
from histocodec.formats.container.obstore_client import Operation, Server, answer

THREADS = 8
ENDED = "the process that makes requests has ended"

T = TypeVar("T")


def ask(server: Server, operation: Operation, key: str, *arguments: Any) -> Any:
    """What `obstore_client.answer` answers, by way of another process where this one was forked. Raises what `answer`
    raises."""
    if not _state.forked:
        if threading.current_thread() is not threading.main_thread():
            return answer(server, operation, key, arguments)
        # obstore does not return before it has an answer. The main thread waits in Python, where Ctrl-C reaches it.
        return in_background(lambda: answer(server, operation, key, arguments)).result()
    with _state.lock:
        if _state.process is None or _state.process.ended:
            _state.process = _ClientProcess()
        process = _state.process
    return process.ask([server.root, server.name, operation, key, list(arguments)])


def in_background(function: Callable[[], T]) -> "Future[T]":
    """The result to be of a function, on a thread that nobody waits for when the program ends."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as exc:
            future.set_exception(exc)

    threading.Thread(target=run, name="histocodec-request", daemon=True).start()
    return future


class _Forked:
    """Whether this process is a forked child that inherited obstore, and what makes its requests then."""

    def __init__(self) -> None:
        # A child of `multiprocessing` that has obstore before this module may have inherited it.
        self.forked = "obstore" in sys.modules and multiprocessing.parent_process() is not None
        self._begin()

    def _begin(self) -> None:
        self.lock = threading.Lock()
        self.process: _ClientProcess | None = None
        renew_in_children(self)

    def renew(self) -> None:
        """Called in a forked child; see `forks`."""
        self.forked = self.forked or "obstore" in sys.modules
        self._begin()


class _ClientProcess:
    """The process, as the one that asks sees it. Thread-safe."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal is for the one that asks
            )
        except OSError as exc:
            raise StoreError(f"a process for requests cannot be started: {exc.strerror or exc}") from exc
        self._lock, self._numbers = threading.Lock(), count()
        self._waiting: dict[int, Future[Any]] = {}
        self.ended = False
        threading.Thread(target=self._listen, name="histocodec-answers", daemon=True).start()

    def ask(self, question: list[object]) -> Any:
        """The answer to a question."""
        future: Future[Any] = Future()
        assert self._process.stdin is not None
        try:
            with self._lock:
                if self.ended:
                    raise StoreError(ENDED)
                number = next(self._numbers)
                self._waiting[number] = future
                _send(self._process.stdin, [number, question])
        except OSError as exc:
            raise StoreError(ENDED) from exc
        return future.result()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            while (message := _receive(self._process.stdout)) is not None:
                number, result, error = message
                future = self._waiting.pop(number)
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(_error_called(*error))
        finally:
            with self._lock:
                self.ended = True
                left, self._waiting = list(self._waiting.values()), {}
            for future in left:
                future.set_exception(StoreError(ENDED))


_state = _Forked()


def serve() -> None:
    """What the other process does: answers questions until there are no more."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not come between
    lock = threading.Lock()

    def work(number: int, question: Sequence[Any]) -> None:
        root, name, operation, key, arguments = question
        result, error = None, None
        try:
            result = answer(Server(root, name), operation, key, arguments)
        except Exception as exc:
            error = [type(exc).__name__, str(exc)]
        with lock:
            _send(answers, [number, result, error])

    with ThreadPoolExecutor(THREADS) as pool:
        while (message := _receive(sys.stdin.buffer)) is not None:
            pool.submit(work, *message)


def _error_called(name: str, message: str) -> Exception:
    if name == FileNotFoundError.__name__:
        return FileNotFoundError(message)
    kind: object = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, HistocodecError):
        return kind(message)
    return StoreError(f"a request failed: {name}: {message}")


def _send(file: IO[bytes], message: object) -> None:
    """Writes a message: values of JSON, and bytes among them."""
    blobs: list[bytes] = []

    def replaced(value: object) -> object:
        if isinstance(value, bytes):
            blobs.append(value)
            return {"bytes": len(value)}
        return [replaced(member) for member in value] if isinstance(value, list | tuple) else value

    text = json.dumps(replaced(message)).encode()
    file.write(b"".join((text, b"\n", *blobs)))
    file.flush()


def _receive(file: IO[bytes]) -> Any:
    """The next message; None at the end. What was a tuple is a list."""
    line = file.readline()
    if not line.endswith(b"\n"):
        return None

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return file.read(value["bytes"])
        return [restored(member) for member in value] if isinstance(value, list) else value

    return restored(json.loads(line))
