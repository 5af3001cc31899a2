"""The version of the package, as installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("histocodec")
except PackageNotFoundError:  # a bare checkout
    VERSION = "0+unknown"
