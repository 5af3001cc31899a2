"""The files of the page, and OpenSeadragon, which is not committed: the wheel has it, and a clone gets it by npm, once.

`package.json` and its lock name the version; npm holds what it fetches to the lock's SHA-512. This module is also what
`build_step.py` uses, so it imports nothing but the standard library.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENDOR = HERE / "vendor"
SCRIPT, LICENSE = "openseadragon.min.js", "openseadragon-LICENSE.txt"
BUILT = Path("node_modules/openseadragon")  # where npm puts it
NPM_SECONDS = 120.0
MOST_SCRIPT = 4 << 20  # bytes


class MissingScriptError(Exception):
    """OpenSeadragon is not there, and could not be fetched; the message says what to do."""


def version(folder: Path = HERE) -> str:
    """The version of OpenSeadragon that the package names."""
    named = json.loads((folder / "package.json").read_text(encoding="utf-8"))["dependencies"]["openseadragon"]
    return str(named)


def present(vendor: Path = VENDOR) -> bool:
    """Whether OpenSeadragon and its licence are there, in the version that the package names."""
    try:
        with (vendor / SCRIPT).open("rb") as file:
            start = file.read(200)
        return f"openseadragon {version()}".encode() in start and (vendor / LICENSE).is_file()
    except OSError:
        return False


def fetch(vendor: Path = VENDOR, *, folder: Path = HERE, npm: str | None = None) -> None:
    """Have npm fetch OpenSeadragon into `vendor`, with its licence; no script of a package is run. Raises
    MissingScriptError where there is no npm, no network, or no permission."""
    npm = npm or shutil.which("npm")
    if npm is None:
        raise MissingScriptError("npm is not installed")
    with tempfile.TemporaryDirectory(prefix="histocodec-npm-") as temporary:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(folder / name, Path(temporary) / name)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"]
        try:
            done = subprocess.run(
                command, cwd=temporary, stdin=subprocess.DEVNULL, capture_output=True, timeout=NPM_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise MissingScriptError(f"npm failed: {exc}") from exc
        built = Path(temporary) / BUILT
        if done.returncode or not (built / "build/openseadragon" / SCRIPT).is_file():
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing was said"]
            raise MissingScriptError(f"npm failed: {lines[0][:200]}")
        try:
            vendor.mkdir(parents=True, exist_ok=True)
            put(built / "LICENSE.txt", vendor / LICENSE)
            put(built / "build/openseadragon" / SCRIPT, vendor / SCRIPT)
        except OSError as exc:
            raise MissingScriptError(f"{vendor} cannot be written: {exc.strerror or exc}") from exc


def put(source: Path, target: Path) -> None:
    """Copy a file so that it is complete or absent; the map of the source is not there, so it is not named."""
    text = source.read_bytes()
    text = b"\n".join(line for line in text.split(b"\n") if not line.startswith(b"//# sourceMappingURL="))
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".vendor-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def from_clone() -> bool:
    """Whether this package lies in a clone, where `vendor` is a folder that git ignores."""
    return (HERE.parents[1] / "pyproject.toml").is_file() and (HERE.parents[1] / ".git").exists()


def advice() -> str:
    """How to get OpenSeadragon by hand."""
    return (
        f"Where there is npm, run `npm pack openseadragon@{version()}`, and copy package/build/openseadragon/{SCRIPT} "
        f"to {VENDOR / SCRIPT} and package/LICENSE.txt to {VENDOR / LICENSE}"
    )


def main() -> int:
    """Fetch OpenSeadragon where it is missing; what `python -m histocodec.cli.viewer.assets` does."""
    if not present():
        try:
            fetch()
        except MissingScriptError as exc:
            sys.stderr.write(f"OpenSeadragon is missing: {exc}\n{advice()}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
