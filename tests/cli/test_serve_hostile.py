"""`histocodec serve` and those who mean it harm: paths, sizes, tokens, names, and many at once."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from histocodec.cli.main import run
from histocodec.cli.viewer import guard, limits, server
from histocodec.cli.viewer.app import application
from histocodec.cli.viewer.catalogue import Catalogue, containers_in
from histocodec.cli.viewer.decoding import Answers, Decoding
from histocodec.cli.viewer.guard import Access
from histocodec.cli.viewer.limits import RefusedError
from histocodec.errors import UsageError
from histocodec.geometry import Region
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.commands import failure
from tests.support.servers import serving_app
from tests.support.slides import encoded

testclient = pytest.importorskip("starlette.testclient", reason="the extra `serve` is not installed")

HERE = "http://127.0.0.1:8200"
TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    """A folder with one container; beside it, another one and a secret."""
    folder = tmp_path_factory.mktemp("hostile") / "slides"
    folder.mkdir()
    pixels = synthetic_slide(700, 600, seed=3)
    encoded(ArraySlide(pixels), folder / "one.hcz", tiny_file, embed_model=True)
    (folder.parent / "outside.hcz").write_bytes((folder / "one.hcz").read_bytes())
    (folder.parent / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator["testclient.TestClient"]:
    with testclient.TestClient(application(Catalogue([folder], device="cpu")), base_url=HERE) as client:
        yield client


@pytest.mark.parametrize(
    "address",
    [
        "/slides/..%2foutside",
        "/slides/..%2foutside.dzi",
        "/slides/%2e%2e/outside",
        "/assets/..%2f..%2fserve.py",
        "/assets/%2e%2e%2fassets.py",
        "/assets/index.html",
        "/slides/one_files/../../secret.txt",
        "/ome-zarr/one.ome.zarr/../../../secret.txt",
        "/ome-zarr/..%2foutside.ome.zarr/zarr.json",
        "/ome-zarr/one.ome.zarr/0/c/0/00/0",
        "/ome-zarr/one.ome.zarr/0/c/0/-1/0",
        "/ome-zarr/one.ome.zarr/99/zarr.json",
        "/ome-zarr/one.ome.zarr/0/c/0/99999999999999999999/0",
        "/iiif/..%2foutside/info.json",
        "/api/slides/..%2foutside",
        "/slides/one_files/99/0_0.png",
        "/slides/one_files/10/-1_0.png",
        "/slides/one_files/10/0_9999999.png",
        "/slides/one_files/10/٣_0.png",
        "/slides/one_files/10/0_0.exe",
        "/slides/one_files/10/0_0",
        "/slides/one%00",
        "/slides/" + "a" * 5000,
        "/api/slides/one/associated/label",
        "/api/slides/one/associated/..%2f..%2fsecret",
        "//etc/passwd",
        "/slides/one/original_files/10/0_0.png",
    ],
)
def test_nothing_is_found_at_an_address_of_nothing(client: "testclient.TestClient", address: str) -> None:
    response = client.get(address)
    assert response.status_code == 404
    assert "secret" not in response.text.replace("associated", "")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "x=0&y=0&width=1",
        "x=0&y=0&width=0&height=1",
        "x=0&y=0&width=-5&height=5",
        "x=0&y=0&width=1e3&height=1",
        "x=0&y=0&width=100000&height=100000",
        "x=0&y=0&width=9999999999999999999&height=1",
        "x=nan&y=0&width=1&height=1",
        "x=0&y=0&width=1&height=1&level=99",
        "x=0&y=0&width=1&height=1&level=-1",
        "x=0&y=0&width=1&height=1&format=exe",
        "x=0&y=0&width=1&height=1&quality=0",
        "x=99999999999999&y=0&width=1&height=1",
        "x=0&y=0&width=20000&height=1&format=webp",
    ],
)
def test_a_region_that_makes_no_sense_is_refused_before_it_is_decoded(
    client: "testclient.TestClient", query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoding, "_submit", None)
    response = client.get(f"/api/slides/one/region?{query}")
    assert response.status_code == 400
    assert response.json()["error"]


def test_other_methods_and_bodies_are_refused(client: "testclient.TestClient") -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE"):
        assert client.request(method, "/api/slides").status_code == 405
    assert client.request("GET", "/api/slides", content=b"body").status_code == 413


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8200", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8200", 200),
        ("192.168.3.4:8200", 200),
        ("evil.example", 421),
        ("evil.example:8200", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("127.0.0.1@evil.example", 421),
        ("a b", 421),
        ("slides.example", 200),
    ],
)
def test_a_name_that_is_not_this_servers_is_refused(folder: Path, host: str, status: int) -> None:
    app = application(Catalogue([folder], device="cpu"), hosts=("slides.example",))
    with testclient.TestClient(app, base_url=HERE) as client:
        assert client.get("/api/slides", headers={"Host": host}).status_code == status


def test_with_a_token_nothing_is_answered_without_it(folder: Path) -> None:
    app = application(Catalogue([folder], device="cpu"), token=TOKEN)
    with testclient.TestClient(app, base_url=HERE) as client:
        for address in ("/", "/api/slides", "/assets/slide.js", "/slides/one_files/9/0_0.jpeg", "/nothing"):
            refused = client.get(address)
            assert (refused.status_code, "one" in refused.text) == (401, False)
            assert refused.headers["www-authenticate"].startswith("Bearer")
            for wrong in (TOKEN[:-1], TOKEN + "x", "", "é"):
                assert client.get(address, params={"token": wrong}).status_code == 401
                encoded_header = f"Bearer {wrong}".encode()
                assert client.get(address, headers={"Authorization": encoded_header}).status_code == 401
        assert client.get("/api/slides", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/api/slides", params={"token": TOKEN}).status_code == 200
        # A browser gets a cookie, and an address without the token.
        page = client.get("/?token=" + TOKEN + "&a=b", headers={"Accept": "text/html"}, follow_redirects=False)
        assert (page.status_code, page.headers["location"]) == (303, "/?a=b")
        cookie = page.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert client.get("/api/slides").status_code == 200  # the cookie is in the jar


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(guard.hmac, "compare_digest", compare)
    assert Access(token="abc").token_matches("abx", None, "abc")
    assert [named for _, named in compared] == [b"abx", b"abc"]


def test_a_redirect_leads_to_no_other_server(folder: Path) -> None:
    app = application(Catalogue([folder], device="cpu"), token=TOKEN)
    with testclient.TestClient(app, base_url=HERE) as client:
        response = client.get(
            f"http://127.0.0.1:8200//evil.example/?token={TOKEN}",
            headers={"Accept": "text/html"},
            follow_redirects=False,
        )
        assert response.headers["location"] == "/evil.example/"


def test_pages_of_other_servers_read_nothing_unless_they_are_allowed(folder: Path) -> None:
    def header(origins: tuple[str, ...], origin: str, **more: str) -> str | None:
        app = application(Catalogue([folder], device="cpu"), origins=origins)
        with testclient.TestClient(app, base_url=HERE) as client:
            response = client.get("/ome-zarr/one.ome.zarr/zarr.json", headers={"Origin": origin, **more})
            found: str | None = response.headers.get("access-control-allow-origin")
            assert ("cross-origin" in response.headers["cross-origin-resource-policy"]) is (origins == ("*",))
            return found

    assert header(guard.VIEWERS, "https://evil.example") is None
    assert header(guard.VIEWERS, "null") is None
    assert header(guard.VIEWERS, "https://hms-dbmi.github.io.evil.example") is None
    assert header(guard.VIEWERS, "http://localhost.evil.example") is None
    assert header(guard.VIEWERS, "https://hms-dbmi.github.io") == "https://hms-dbmi.github.io"
    assert header(guard.VIEWERS, "http://localhost:5173") == "http://localhost:5173"
    assert header(("https://a.example",), "https://a.example") == "https://a.example"
    assert header(("*",), "https://evil.example") == "*"


def test_a_preflight_allows_ranges_and_tokens(client: "testclient.TestClient") -> None:
    asked = {"Origin": guard.VIEWERS[0], "Access-Control-Request-Method": "GET"}
    asked |= {"Access-Control-Request-Headers": "range", "Access-Control-Request-Private-Network": "true"}
    response = client.options("/ome-zarr/one.ome.zarr/zarr.json", headers=asked)
    assert response.status_code == 204
    assert "Range" in response.headers["access-control-allow-headers"]
    assert response.headers["access-control-allow-private-network"] == "true"


def test_links_that_lead_out_of_the_folder_are_not_served(tmp_path: Path, folder: Path) -> None:
    inside = tmp_path / "served"
    (inside / "deeper").mkdir(parents=True)
    (inside / "real.hcz").write_bytes((folder / "one.hcz").read_bytes())
    (inside / "out.hcz").symlink_to(folder / "one.hcz")
    (inside / "out.hc.zarr").symlink_to(folder)
    (inside / "loop.hcz").symlink_to(inside / "loop.hcz")
    (inside / "deeper" / "within.hcz").symlink_to(inside / "real.hcz")
    (inside / "elsewhere").symlink_to(folder)
    (inside / ".hidden.hcz").write_bytes(b"")
    assert sorted(path.name for path in containers_in(inside)) == ["real.hcz", "within.hcz"]
    catalogue = Catalogue([inside], device="cpu")
    assert catalogue.open("real").slide.levels
    (inside / "real.hcz").unlink()
    (inside / "real.hcz").symlink_to(folder / "one.hcz")  # after it was listed
    with pytest.raises(RefusedError, match="link that leads out"):
        catalogue.open("real")


def test_two_slides_of_one_name_have_two_ids_without_their_paths(tmp_path: Path, folder: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.hcz").write_bytes((folder / "one.hcz").read_bytes())
    entries = Catalogue([tmp_path], device="cpu").entries()
    assert len({entry.id for entry in entries}) == 2
    assert all(entry.id.startswith("one") and "/" not in entry.id for entry in entries)


def test_a_damaged_slide_is_one_clear_error(tmp_path: Path, folder: Path) -> None:
    data = bytearray((folder / "one.hcz").read_bytes())
    (tmp_path / "broken.hcz").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.hcz").write_bytes(b"")
    app = application(Catalogue([tmp_path], device="cpu"))
    with testclient.TestClient(app, base_url=HERE) as client:
        rows = client.get("/api/slides").json()["slides"]
        assert [row["id"] for row in rows] == ["broken", "empty"]
        assert all(row["error"] and str(tmp_path) not in row["error"] for row in rows)
        assert client.get("/slides/broken_files/0/0_0.png").status_code == 502


def test_who_comes_when_too_many_wait_is_told_to_come_again() -> None:
    async def scenario() -> None:
        decoding, gate = Decoding(1), asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow() -> int:
            return asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30) and 1

        tasks = [asyncio.create_task(decoding.run(slow)) for _ in range(limits.WAITING + 1)]
        await asyncio.sleep(0.1)
        with pytest.raises(RefusedError) as refused:
            await decoding.run(slow)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "1")
        for task in tasks[2:]:
            task.cancel()  # their clients have gone
        await asyncio.sleep(0.1)
        last = asyncio.create_task(decoding.run(slow))
        await asyncio.sleep(0)
        gate.set()
        assert await last == 1
        assert await asyncio.gather(*tasks[:2]) == [1, 1]
        decoding.close()

    asyncio.run(scenario())


def test_requests_for_one_level_are_decoded_together_and_each_gets_its_own() -> None:
    slide = ArraySlide(synthetic_slide(400, 300, seed=1))

    async def scenario() -> None:
        decoding = Decoding(2)
        regions = [Region(40 * n, 10 * n, 30, 20) for n in range(8)] + [Region(0, 0, -0, 0)]
        found = await asyncio.gather(*(decoding.read(slide, 0, region, lambda p: p) for region in regions))
        for region, pixels in zip(regions, found, strict=True):
            assert (pixels == slide.read(region, 0)).all()
        with pytest.raises(UsageError):
            await decoding.read(slide, 7, regions[0], lambda p: p)
        decoding.close()

    asyncio.run(scenario())


def test_an_answer_that_many_wait_for_is_made_once() -> None:
    async def scenario() -> None:
        answers, made = Answers(1000), 0

        async def make() -> bytes:
            nonlocal made
            made += 1
            await asyncio.sleep(0.01)
            return b"x" * 100

        waiting = [asyncio.create_task(answers.get("tag", make)) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        bodies = await asyncio.gather(*waiting[1:])
        assert (made, set(bodies)) == (1, {b"x" * 100})
        assert await answers.get("tag", make) == bodies[0]
        assert made == 1
        for number in range(20):  # the oldest are forgotten
            await answers.get(str(number), make)
        await answers.get("tag", make)
        assert made == 22

    asyncio.run(scenario())


def test_what_takes_too_long_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "REQUEST_SECONDS", 0.05)

    async def never(*arguments: object) -> object:
        await asyncio.sleep(30)
        return None

    monkeypatch.setattr(Decoding, "_submit", never)
    with testclient.TestClient(application(Catalogue([folder], device="cpu")), base_url=HERE) as client:
        response = client.get("/slides/one_files/9/0_0.png")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")


@pytest.fixture
def address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(server, "HEADER_SECONDS", 1.0)
    with serving_app(application(Catalogue([folder], device="cpu"))) as address:
        yield address


def connected(address: str) -> socket.socket:
    """A connection to a server."""
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_who_asks_again_and_again_stays_connected(address: str) -> None:
    request = b"HEAD /assets/icon.svg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    until = time.monotonic() + 3 * server.HEADER_SECONDS
    with connected(address) as sock:
        while time.monotonic() < until:
            sock.sendall(request)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.02)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET /api/slides HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET / HT"])
def test_who_sends_no_whole_request_is_disconnected(address: str, sent: bytes) -> None:
    with connected(address) as sock:
        sock.sendall(sent)
        while sock.recv(65536):
            pass  # until the server closes it: recv would time out otherwise


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)),
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
)
def test_nonsense_is_answered_by_an_error(address: str, sent: bytes) -> None:
    with connected(address) as sock:
        sock.sendall(sent)
        answer = b""
        while part := sock.recv(65536):
            answer += part
        assert answer.startswith(b"HTTP/1.1 4")


def test_a_client_that_goes_away_ends_its_work(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[bool] = []

    async def never(*arguments: object) -> object:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return None

    monkeypatch.setattr(Decoding, "_submit", never)
    with connected(address) as sock:
        sock.sendall(b"GET /slides/one_files/8/0_0.png HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        time.sleep(0.3)
    wait_until(lambda: bool(cancelled))


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something has happened, half a minute at most."""
    for _ in range(300):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--host", "0.0.0.0"), "--token new"),
        (("--host", "::"), "--token new"),
        (("--host", "192.0.2.1", "--without-token"), "192.0.2.1"),
        (("--token", " "), "empty"),
        (("--token", "a", "--without-token"), "contradict"),
        (("--port", "70000"), "65535"),
        (("--original-dir", "missing"), "is no folder"),
    ],
)
def test_what_would_not_be_safe_or_sensible_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
) -> None:
    code, message = failure(capsys, "serve", folder, *arguments)
    assert code in (1, 2)
    assert named in message


def test_a_port_that_is_taken_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, message = failure(capsys, "serve", folder, "--port", port)
    assert (code, port in message, "--port 0" in message) == (1, True, True)


def test_what_is_no_slide_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(tmp_path / "missing.hcz")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert run(["serve", str(tmp_path)]) == 2
    assert "no container" in capsys.readouterr().err
    (tmp_path / "a.hcz").write_bytes(b"nonsense")
    assert run(["serve", str(tmp_path / "a.hcz")]) in (3, 4)
    assert "a.hcz" in capsys.readouterr().err
