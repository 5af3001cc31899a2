"""`histocodec serve` as a process, and the programs that read slides from it over HTTP."""

import json
import os
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import histocodec
from histocodec.cli.viewer import assets
from histocodec.cli.viewer.app import application
from histocodec.cli.viewer.catalogue import Catalogue
from histocodec.formats.decode.slide import CompressedSlide
from histocodec.sources import ArraySlide
from histocodec.sources.synthetic import synthetic_slide
from tests.support.servers import serving, serving_app
from tests.support.slides import SIZE, encoded, whole

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory, tiny_file: Path) -> Path:
    path = tmp_path_factory.mktemp("command") / "a.hcz"
    encoded(ArraySlide(synthetic_slide(*SIZE, seed=3), mpp=0.25), path, tiny_file, embed_model=True)
    return path


@pytest.fixture(scope="module")
def slide(container: Path) -> Iterator[CompressedSlide]:
    with histocodec.open(container, device="cpu") as slide:
        yield slide


@pytest.fixture(scope="module")
def address(container: Path) -> Iterator[str]:
    with serving_app(application(Catalogue([container], device="cpu"))) as address:
        yield address


@contextmanager
def running(*arguments: str | Path, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "histocodec", "serve", *map(str, arguments), "--port", "0", "--device", "cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env={**os.environ, **variables}, **pipes) as process:  # type: ignore[call-overload]  # pipes
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def read_object(process: "subprocess.Popen[str]") -> dict[str, object]:
    """The JSON object that a process prints, while it goes on."""
    text = ""
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if line.rstrip() == "}":
            break
    found: dict[str, object] = json.loads(text)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_server_cleanly(container: Path, number: signal.Signals) -> None:
    with running(container, "--json") as process:
        said = read_object(process)
        address = str(said["address"])
        assert address.startswith("http://127.0.0.1:")
        assert said["slides"] == 1
        with urllib.request.urlopen(address + "api/slides", timeout=60) as answer:
            assert json.load(answer)["total"] == 1
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert errors.splitlines()[-1] == "stopped"
        assert "Traceback" not in errors


def test_a_new_token_is_in_the_address_that_is_printed(container: Path) -> None:
    with running(container, "--token", "new", "--host", "0.0.0.0") as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[1]
        assert "/?token=" in address
        assert "127.0.0.1" in address  # 0.0.0.0 is no address that a browser opens
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address.split("?")[0], timeout=60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_a_slide_at_a_url_is_served(container: Path, slide: CompressedSlide) -> None:
    with serving(container.parent) as server:
        app = application(Catalogue([f"{server.url}/a.hcz"], device="cpu"))
        with serving_app(app) as address, urllib.request.urlopen(f"{address}/api/slides/a", timeout=60) as answer:
            assert json.load(answer)["width"] == slide.levels[0].width


def channels_first(slide: CompressedSlide, level: int) -> np.ndarray:
    return whole(slide, level).transpose(2, 0, 1)


def test_zarr_reads_the_address(address: str, slide: CompressedSlide) -> None:
    import obstore
    import zarr
    from zarr.storage import ObjectStore

    for prefix, zarr_format in (("ome-zarr", 3), ("ome-zarr-0.4", 2)):
        store = obstore.store.from_url(f"{address}/{prefix}/a.ome.zarr", client_options={"allow_http": True})
        group = zarr.open_group(ObjectStore(store, read_only=True), mode="r", zarr_format=zarr_format)
        for level in range(len(slide.levels)):
            assert np.array_equal(group[str(level)][:], channels_first(slide, level))


def test_tensorstore_reads_the_address(address: str, slide: CompressedSlide) -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    for prefix, driver in (("ome-zarr", "zarr3"), ("ome-zarr-0.4", "zarr")):
        base = f"{address}/{prefix}/a.ome.zarr/"
        spec = {"driver": driver, "kvstore": {"driver": "http", "base_url": base, "path": "0/"}}
        array = tensorstore.open(spec, read=True).result()
        assert np.array_equal(array[:, 100:700, 300:900].read().result(), channels_first(slide, 0)[:, 100:700, 300:900])


def test_ngff_zarr_reads_the_address(address: str, slide: CompressedSlide) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr", reason="ngff-zarr is not installed")
    multiscales = ngff_zarr.from_ngff_zarr(f"{address}/ome-zarr-0.4/a.ome.zarr", version="0.4")
    image = multiscales.images[0]
    assert image.scale["x"] == 0.25
    assert np.array_equal(np.asarray(image.data), channels_first(slide, 0))


def fake_npm(folder: Path, script: str) -> Path:
    """A program that stands for npm."""
    path = folder / "npm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_openseadragon_is_fetched_whole_with_its_licence(tmp_path: Path) -> None:
    built = "node_modules/openseadragon"
    script = f"""test "$1" = ci || exit 9
case " $* " in *" --ignore-scripts "*) ;; *) exit 8;; esac
grep -q sha512- package-lock.json || exit 7
mkdir -p {built}/build/openseadragon
echo licence > {built}/LICENSE.txt
cd {built}/build/openseadragon
printf '//! openseadragon {assets.version()}\\ncode\\n//# sourceMappingURL=a.map\\n' > {assets.SCRIPT}"""
    vendor = tmp_path / "vendor"
    assert not assets.present(vendor)
    assets.fetch(vendor, npm=str(fake_npm(tmp_path, script)))
    assert assets.present(vendor)
    assert b"sourceMappingURL" not in (vendor / assets.SCRIPT).read_bytes()
    assert sorted(path.name for path in vendor.iterdir()) == sorted([assets.SCRIPT, assets.LICENSE])


@pytest.mark.parametrize("script", ["echo no network >&2; exit 1", "exit 0"])
def test_without_a_network_nothing_is_left_behind(tmp_path: Path, script: str) -> None:
    with pytest.raises(assets.MissingScriptError, match="npm failed"):
        assets.fetch(tmp_path / "vendor", npm=str(fake_npm(tmp_path, script)))
    assert not (tmp_path / "vendor").exists()


def test_without_npm_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from histocodec.cli import serve

    monkeypatch.setattr(assets, "present", lambda: False)
    monkeypatch.setattr(assets.shutil, "which", lambda name: None)
    for clone in (True, False):
        monkeypatch.setattr(assets, "from_clone", lambda clone=clone: clone)
        assert not serve.prepare_page()
        said = capsys.readouterr().err
        assert "all else is served" in said
        assert f"npm pack openseadragon@{assets.version()}" in said


def test_the_lock_names_the_version_that_the_package_names() -> None:
    lock = json.loads((assets.HERE / "package-lock.json").read_text())
    locked = lock["packages"]["node_modules/openseadragon"]
    assert locked["version"] == assets.version()
    assert locked["integrity"].startswith("sha512-")
    assert sorted(lock["packages"]) == ["", "node_modules/openseadragon"]
