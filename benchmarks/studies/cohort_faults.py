"""A cohort while everything fails: are all slides there at the end, whole, once, and does the ledger tell the truth?

    python -m histocodec.benchmarks.studies.cohort_faults --slides 200 --kills 10 --scheduler-kills 1

Made-up slides are compressed to S3 (moto's server, behind a proxy that fails one write in ten: it refuses, it ends with
status 500, or it writes and then cuts the answer), by `cohort run` on workers of its own and on a scheduler with two
workers that were started by hand. Workers, the scheduler and `cohort run` itself get SIGKILL at random moments; what
was started by hand is started again, and `cohort run` again until nothing is left. Then every object is compared with
what a single encode makes of the slide, and with the ledger. Needs moto and boto3 (the extra `test`).
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import Request, urlopen

import click

from histocodec.benchmarks.studies.run_command import run_command
from histocodec.formats.cohort.ledger import Ledger, Row
from histocodec.formats.cohort.plan import make_plan
from histocodec.formats.cohort.policy import Policy, encode_options
from histocodec.formats.encode.encode import encode_slide
from histocodec.report import print_json, say
from histocodec.sources import open_slide
from histocodec.sources.synthetic import synthetic_slide, write_pyramidal_tiff

BUCKET = "slides"
FAIL_EVERY = 10  # writes to the store
FAULTS = ("status 500", "refused", "cut after writing")
SIDES = (260, 900)  # pixels of the made-up slides, from and to
PATIENCE = 900.0  # seconds for one call of `cohort run`
ROUNDS = 20  # calls of `cohort run`, at most
MODES = ("local", "scheduler")


@dataclass(frozen=True)
class Faults:
    """What happened, and what was found at the end. `wrong` lists every way in which a row, an object or the store is
    not as it has to be; it is empty where nothing was lost."""

    mode: str
    slides: int
    worker_kills: int
    scheduler_kills: int
    run_kills: int
    runs: int
    failed_writes: int
    writes: int
    done: int
    adopted: int
    attempts: int
    seconds: float
    wrong: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.mode}: {self.done} of {self.slides} slides done in {self.runs} runs and {self.seconds:.0f} s; "
            f"{self.worker_kills} workers, {self.scheduler_kills} schedulers and {self.run_kills} runs were killed, "
            f"{self.failed_writes} of {self.writes} writes failed; {self.adopted} containers adopted, {self.attempts} "
            f"attempts in all; {len(self.wrong)} wrong{''.join(f'{chr(10)}  {line}' for line in self.wrong[:20])}"
        )


@dataclass
class FailingStore:
    """A proxy before a store that fails every so many writes. `url` is its address."""

    target: tuple[str, int]
    every: int
    delay: float = 0.0  # seconds that each write takes
    url: str = ""
    writes: int = 0
    failed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self) -> str | None:
        """What goes wrong with a write, if anything."""
        with self.lock:
            self.writes += 1
            if not self.every or self.writes % self.every:
                return None
            self.failed += 1
            return FAULTS[self.failed % len(FAULTS)]


@contextmanager
def failing_store(target: tuple[str, int], every: int, delay: float = 0.0) -> Iterator[FailingStore]:
    """The proxy, on a free port of loopback."""
    store = FailingStore(target, every, delay)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = store.fault() if self.command in ("PUT", "POST") else None
            if self.command == "PUT":
                time.sleep(store.delay)
            if fault in ("status 500", "refused"):
                return self.send(500 if fault == "status 500" else 403, {}, b"")
            connection = HTTPConnection(*store.target, timeout=60)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
            finally:
                connection.close()
            if fault is not None:
                self.close_connection = True
                return None
            return self.send(answer.status, dict(answer.headers), data)

        def send(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *arguments: Any) -> None:
            """A client that was killed is no error."""

    with Quiet(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        store.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def s3_server() -> Iterator[tuple[str, int]]:
    """moto's S3 with a bucket; yields its address."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")):  # all servers of a process share
            pass
        client = boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", aws_access_key_id="a",
            aws_secret_access_key="b",
        )  # fmt: skip
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield host, port
    finally:
        server.stop()


def stored(target: tuple[str, int]) -> dict[str, bytes]:
    """All objects of the store, asked for without the proxy."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=f"http://{target[0]}:{target[1]}", region_name="us-east-1", aws_access_key_id="a",
        aws_secret_access_key="b",
    )  # fmt: skip
    objects = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", ()):
            objects[item["Key"]] = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
    client.close()
    return objects


def study(
    mode: str,
    *,
    slides: int,
    kills: int,
    scheduler_kills: int = 0,
    run_kills: int = 0,
    every: int = FAIL_EVERY,
    delay: float = 0.0,
    model: str | None = None,
    more: Sequence[Path] = (),
    seed: int = 0,
    attempts: int = 8,
) -> Faults:
    """Compresses slides while things fail, and compares everything at the end. `more` are slides beside made-up ones.

    In the mode `local`, `cohort run` starts two workers; in `scheduler`, a scheduler and two workers run already."""
    chance = random.Random(seed)
    options: dict[str, object] = {"effort": 0, **({} if model is None else {"model": model})}
    with TemporaryDirectory(prefix="histocodec-faults-") as text, s3_server() as target, ExitStack() as stack:
        store = stack.enter_context(failing_store(target, every, delay))
        folder = Path(text)
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": store.url, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1", "XDG_CACHE_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": text,
        }  # fmt: skip
        for number in range(slides):
            side = chance.randint(*SIDES)
            pixels = synthetic_slide(side, max(200, side - 37 * (number % 5)), seed=number)
            (folder / "slides").mkdir(exist_ok=True)
            write_pyramidal_tiff(folder / "slides" / f"slide-{number:04}.tif", pixels, mpp=0.5)
        ledger = folder / "cohort.sqlite"
        make_plan([folder / "slides", *more], f"s3://{BUCKET}/out", ledger, Policy(), options=options)
        began = time.perf_counter()
        killer = _Killer(ledger, environment, mode, chance, kills, scheduler_kills, run_kills, attempts)
        runs = killer.work()
        seconds = time.perf_counter() - began
        with Ledger.open(ledger) as opened:
            rows = list(opened.rows())
        wrong = tuple(_wrong(rows, stored(target), folder, slides + len(more)))
        return Faults(
            mode, len(rows), killer.killed["worker"], killer.killed["scheduler"], killer.killed["run"], runs,
            store.failed, store.writes, sum(row.state == "done" for row in rows),
            sum(bool(row.adopted) for row in rows), sum(row.attempts for row in rows), seconds, wrong,
        )  # fmt: skip


def _wrong(rows: Sequence[Row], objects: Mapping[str, bytes], folder: Path, slides: int) -> Iterator[str]:
    """Everything that is not as it has to be."""
    if len(rows) != slides:
        yield f"the ledger has {len(rows)} rows for {slides} slides"
    expected = {row.result.removeprefix(f"s3://{BUCKET}/") for row in rows}
    for key in sorted(objects.keys() - expected):
        yield f"{key}: is in the store, and is no slide's"
    for row in rows:
        name, data = Path(row.source).name, objects.get(row.result.removeprefix(f"s3://{BUCKET}/"))
        if row.state != "done":
            yield f"{name}: is {row.state} ({row.error})"
        if data is None:
            yield f"{name}: has no container"
            continue
        alone = folder / "alone.hcz"
        with open_slide(row.source) as slide:
            chosen = encode_options(row.options, source_sha256=True, device="cpu", overwrite=True)
            report = encode_slide(slide, alone, chosen, created=row.created)
        if alone.read_bytes() != data:
            yield f"{name}: is not what a single encode makes"
        told = (row.result_bytes, row.result_sha256, row.digest, row.source_sha256, row.quality)
        source = sha256(Path(row.source).read_bytes()).hexdigest()
        if told != (len(data), sha256(data).hexdigest(), report.digest, source, report.quality):
            yield f"{name}: the ledger does not tell the truth: {told}"
        if row.psnr is None or abs(row.psnr - report.psnr) > 1e-3:
            yield f"{name}: the ledger has PSNR {row.psnr}, and {report.psnr} was measured"


class _Killer:
    """Runs a cohort again and again, and kills what works on it at random moments."""

    def __init__(
        self,
        ledger: Path,
        environment: Mapping[str, str],
        mode: str,
        chance: random.Random,
        worker_kills: int,
        scheduler_kills: int,
        run_kills: int,
        attempts: int,
    ) -> None:
        self._ledger, self._environment, self._mode, self._chance = ledger, dict(environment), mode, chance
        self._attempts = attempts
        self._plan = ["worker"] * worker_kills + ["scheduler"] * scheduler_kills + ["run"] * run_kills
        chance.shuffle(self._plan)
        self.killed = {"worker": 0, "scheduler": 0, "run": 0}
        self._port = _free_port()
        self._workers: list[subprocess.Popen[bytes]] = []
        self._scheduler: subprocess.Popen[bytes] | None = None

    def work(self) -> int:
        """Works until no slide is left and everything that was to be killed was; returns the number of runs."""
        try:
            if self._mode == "scheduler":
                self._start_scheduler()
                self._workers = [self._start_worker() for _ in range(2)]
            for number in range(1, ROUNDS + 1):
                self._run()
                with Ledger.open(self._ledger) as ledger:
                    counts = ledger.counts()
                if counts["done"] == sum(counts.values()):
                    return number
            return ROUNDS
        finally:
            for process in (*self._workers, *filter(None, [self._scheduler])):
                _kill(process)

    def _run(self) -> None:
        address = ["--scheduler", f"tcp://127.0.0.1:{self._port}"] if self._mode == "scheduler" else ["--workers", "2"]
        arguments = ["cohort", "run", str(self._ledger), *address, "--device", "cpu", "--threads", "1"]
        process = self._started(["-m", "histocodec", *arguments, "--attempts", str(self._attempts)])
        end = time.monotonic() + PATIENCE
        target = self._next_target()
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
            if self._plan and self._done() >= target:
                self._kill_one(process)
                target = self._next_target()
        if process.poll() is None:
            _kill(process)

    def _next_target(self) -> int:
        """After how many slides something is killed: what is left is shared out among what is left to kill."""
        done, total = self._done(), self._total()
        share = max(1, (total - done) // (len(self._plan) + 1))
        return done + self._chance.randint(1, share)

    def _kill_one(self, run: "subprocess.Popen[bytes]") -> None:
        time.sleep(self._chance.random() * 0.3)
        kind = self._plan[-1]
        if kind == "run":
            _kill(run)
        elif kind == "scheduler":
            assert self._scheduler is not None
            _kill(self._scheduler)
            time.sleep(self._chance.random())
            self._start_scheduler()
            for worker in self._workers:  # which end without their scheduler
                _kill(worker)
            self._workers = [self._start_worker() for _ in self._workers]
        elif self._mode == "scheduler":
            number = self._chance.randrange(len(self._workers))
            _kill(self._workers[number])
            self._workers[number] = self._start_worker()
        else:
            import psutil

            with suppress(psutil.NoSuchProcess):
                below = psutil.Process(run.pid).children(recursive=True)
                workers = [child for child in below if "spawn_main" in " ".join(child.cmdline())]
                if not workers:
                    return
                self._chance.choice(workers).kill()
        self._plan.pop()
        self.killed[kind] += 1

    def _done(self) -> int:
        with Ledger.open(self._ledger) as ledger:
            return ledger.counts()["done"]

    def _total(self) -> int:
        with Ledger.open(self._ledger) as ledger:
            return sum(ledger.counts().values())

    def _start_scheduler(self) -> None:
        arguments = ["--host", "127.0.0.1", "--port", str(self._port), "--no-dashboard", "--dashboard-address", ":0"]
        self._scheduler = self._started(["-m", "dask", "scheduler", *arguments])

    def _start_worker(self) -> "subprocess.Popen[bytes]":
        address = f"tcp://127.0.0.1:{self._port}"
        return self._started(["-m", "dask", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard"])

    def _started(self, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("HISTOCODEC_DEBUG") else subprocess.DEVNULL,
            start_new_session=True,
        )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@click.command()
@click.option("--slides", default=200, show_default=True, help="Made-up slides.")
@click.option("--more", multiple=True, type=click.Path(exists=True, path_type=Path), help="Other slides. Repeatable.")
@click.option("--kills", default=10, show_default=True, help="Workers that are killed.")
@click.option("--scheduler-kills", default=1, show_default=True, help="Schedulers that are killed.")
@click.option("--run-kills", default=1, show_default=True, help="Runs that are killed.")
@click.option("--mode", type=click.Choice(MODES), multiple=True, default=MODES, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def command(
    slides: int, more: Sequence[Path], kills: int, scheduler_kills: int, run_kills: int, mode: Sequence[str],
    seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Compress a cohort while workers, scheduler and store fail, and compare everything at the end."""
    results = []
    for chosen in mode:
        found = study(
            chosen, slides=slides, kills=kills, scheduler_kills=scheduler_kills if chosen == "scheduler" else 0,
            run_kills=run_kills, more=more, seed=seed,
        )  # fmt: skip
        say(str(found))
        results.append(found)
    if as_json:
        print_json({"studies": results})
    if any(found.wrong for found in results):
        sys.exit(1)


if __name__ == "__main__":
    run_command(command)
