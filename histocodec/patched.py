"""`python -m histocodec.patched PROGRAM.py …` or `-m MODULE …`: runs a program in which OpenSlide opens containers."""

import runpy
import sys

from histocodec.formats.clients.openslide_patch import patch_openslide

USAGE = "usage: python -m histocodec.patched PROGRAM.py [ARGUMENT...] | -m MODULE [ARGUMENT...]"


def main() -> None:
    """Patches OpenSlide, then runs the program that the command line names, as Python itself would."""
    arguments = sys.argv[1:]
    is_module = arguments[:1] == ["-m"]
    if len(arguments) < 1 + is_module:
        sys.exit(USAGE)
    patch_openslide()
    sys.argv = arguments[is_module:]
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
