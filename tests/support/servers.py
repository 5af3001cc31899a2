"""Servers on loopback that slides are read from: a web server that can go wrong, and S3 as moto has it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

STALL = 3.0  # seconds; longer than the time-outs that tests set


@dataclass(frozen=True)
class Request:
    """One request that a server got. `range` is the header."""

    method: str
    path: str
    range: str | None
    authorization: str | None = None


@dataclass
class WebServer:
    """The files below a folder, with ranges unless `ranges` is False. `fault` says what goes wrong with a request: an
    HTTP status, "truncated", "stalled", "short" (a shorter range than asked for), or None."""

    folder: Path
    ranges: bool = True
    fault: Callable[[Request], int | str | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        request = Request(
            handler.command, handler.path, handler.headers.get("Range"), handler.headers.get("Authorization")
        )
        self.requests.append(request)
        fault, path = self.fault(request), self.folder / unquote(parts.path).lstrip("/")
        if isinstance(fault, int):
            return self._send(handler, fault, b"")
        if not path.is_file():
            return self._send(handler, 404, b"")
        data = path.read_bytes()
        if request.range is None or not self.ranges:
            return self._send(handler, 200, data, fault)
        first, last = request.range.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= end:
            return self._send(handler, 416, b"")
        end -= fault == "short"
        return self._send(handler, 206, data[start:end], fault, f"bytes {start}-{end - 1}/{len(data)}")

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        fault: str | None = None,
        part: str | None = None,
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        if part is not None:
            handler.send_header("Content-Range", part)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        if fault in ("truncated", "stalled"):
            body = body[: len(body) // 2]
            handler.close_connection = True
        handler.wfile.write(body)
        handler.wfile.flush()
        if fault == "stalled":
            time.sleep(STALL)


@contextmanager
def serving(folder: Path, **choices: Any) -> Iterator[WebServer]:
    """A web server for the files below a folder."""
    server = WebServer(folder, **choices)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.answer(self)

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            pass

    with Quiet(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{httpd.server_port}"
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()


@contextmanager
def s3(folder: Path, bucket: str = "slides") -> Iterator[dict[str, str]]:
    """An S3 server with the files below a folder in a bucket; yields the environment in which obstore finds it."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # every request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.put_object(Bucket=bucket, Key=path.relative_to(folder).as_posix(), Body=path.read_bytes())
        client.close()
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
        }
    finally:
        server.stop()


@contextmanager
def serving_app(app: Any) -> Iterator[str]:
    """`histocodec serve`'s application on a free port of loopback; yields its address, without a slash at its end."""
    from histocodec.cli.viewer.server import bound, serve

    sock, started = bound("127.0.0.1", 0), threading.Event()
    stop: list[Callable[[], None]] = []
    thread = threading.Thread(target=serve, args=(app, sock, started.set), kwargs={"stoppable": stop.append})
    address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread.start()
    try:
        assert started.wait(60)
        yield address
    finally:
        stop[0]()
        thread.join(30)
