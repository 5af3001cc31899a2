"""The step of building a wheel that puts OpenSeadragon and its licence into it. See `[tool.setuptools.cmdclass]`.

Without npm or a network, the wheel is built without it, and `histocodec serve` says what to do. A release is built with
HISTOCODEC_VIEWER=required, which fails instead; HISTOCODEC_VIEWER=skip never asks npm.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools.command.build_py import build_py

VARIABLE = "HISTOCODEC_VIEWER"


class BuildWithViewer(build_py):  # type: ignore[misc]  # setuptools may be untyped
    """`build_py`, after OpenSeadragon was fetched into the folder `vendor`, whose files are package data."""

    def run(self) -> None:
        """Fetch it where it is missing, then build."""
        choice = os.environ.get(VARIABLE, "")
        if choice != "skip" and not getattr(self, "editable_mode", False):
            assets = _assets()
            if not assets.present():
                try:
                    assets.fetch()
                except assets.MissingScriptError as exc:
                    if choice == "required":
                        raise
                    sys.stderr.write(f"histocodec: the wheel has no OpenSeadragon: {exc}\n")
                self.__dict__.pop("data_files", None)  # setuptools looks for data before it builds
        super().run()


def _assets() -> ModuleType:
    """`assets.py`, by its path: the package cannot be imported where a wheel is built in isolation."""
    spec = importlib.util.spec_from_file_location("histocodec_viewer_assets", Path(__file__).with_name("assets.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
