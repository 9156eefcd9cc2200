"""Check every shape annotation of the package while the tests and doctests run."""

import sys

import pytest
from jaxtyping import install_import_hook

install_import_hook("nestling", "beartype.beartype")


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs a command: (exit code, standard output, standard error)."""
    from nestling.cli import main

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # set by main() too: put back after the test

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nestling", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run
