from __future__ import annotations

import os
import subprocess
import sys

import pytest

import nestling.storage.lock as lock_module
from nestling.storage.lock import lock

HOLD = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("lock", sys.argv[2])  # without importing torch
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
with module.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_and_a_killed_one_leaves_nothing(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), lock_module.__file__],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        told = rf"another process .*\(process {other.pid} on "
        with pytest.raises(ValueError, match=told), lock(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")
    with lock(tmp_path):
        pass
