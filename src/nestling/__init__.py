"""Nested Learning for PyTorch: memory x learning rule x level."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nestling")
except PackageNotFoundError:  # run from a source tree with PYTHONPATH=src
    __version__ = "0.1.0+source"
