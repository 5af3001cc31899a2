"""Servers on loopback that containers are read from, and that count: a web server, and S3 as moto has it."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from histocodec.benchmarks.measure.traffic import Recorder
from histocodec.errors import UnsupportedError

BUCKET = "slides"
HOP_BY_HOP = ("connection", "transfer-encoding", "content-length", "date", "server", "host")


@dataclass(frozen=True)
class Answer:
    """An answer to a request: its status, its body, the headers that it needs beside its length, and its length where
    that is not the body's, as in an answer to HEAD."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None


Respond = Callable[[str, str, Mapping[str, str]], Answer]  # of the method, the path and the headers of a request


@contextmanager
def web_server(folder: Path, recorder: Recorder) -> Iterator[str]:
    """An ordinary web server for the files below a folder, with ranges. Yields its URL."""

    def respond(method: str, path: str, headers: Mapping[str, str]) -> Answer:
        file = folder / unquote(urlsplit(path).path).lstrip("/")
        return _part_of(file.read_bytes(), headers.get("Range")) if file.is_file() else Answer(404)

    with _serving(respond, recorder) as address:
        yield f"http://{address}"


@contextmanager
def s3_server(folder: Path, recorder: Recorder) -> Iterator[str]:
    """An S3 server with the files below a folder in a bucket; yields the bucket's URL. For as long as it runs, the
    environment says where it is. Raises UnsupportedError where moto is not installed."""
    try:
        from moto.server import ThreadedMotoServer
    except ImportError as exc:
        raise UnsupportedError("no S3 server: `pip install 'moto[server]'`") from exc
    import logging

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # every request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()

        def respond(method: str, path: str, headers: Mapping[str, str]) -> Answer:
            return _forwarded(f"{host}:{port}", method, path, headers)

        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"}
        _forwarded(f"{host}:{port}", "PUT", f"/{BUCKET}", signed)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                path = f"/{BUCKET}/{quote(file.relative_to(folder).as_posix())}"
                _forwarded(f"{host}:{port}", "PUT", path, signed, file.read_bytes())
        with _serving(respond, recorder) as address, _environment(f"http://{address}"):
            yield f"s3://{BUCKET}"
    finally:
        server.stop()


def _part_of(data: bytes, asked: str | None) -> Answer:
    """A file as a whole, or the range of it that the header asks for."""
    if asked is None:
        return Answer(200, data)
    first, last = asked.removeprefix("bytes=").split("-")
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= end:
        return Answer(416)
    return Answer(206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})


def _forwarded(address: str, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
    """What another server answers."""
    connection = HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body or None, dict(headers))
        response = connection.getresponse()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
        length = response.getheader("Content-Length") if method == "HEAD" else None
        return Answer(response.status, response.read(), kept, None if length is None else int(length))
    finally:
        connection.close()


@contextmanager
def _serving(respond: Respond, recorder: Recorder) -> Iterator[str]:
    """A server, every request to which is noted; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with recorder.request() as request:
                answer = respond(self.command, self.path, {name.title(): value for name, value in self.headers.items()})
                body = b"" if self.command == "HEAD" else answer.body
                request.bytes = len(body)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
                self.end_headers()
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with ExitStack() as stack:
        server = stack.enter_context(Server(("127.0.0.1", 0), Handler))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        yield f"127.0.0.1:{server.server_port}"


@contextmanager
def _environment(endpoint: str) -> Iterator[None]:
    """The variables by which obstore finds an S3 server."""
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
