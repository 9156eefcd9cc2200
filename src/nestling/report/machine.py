"""What a run ran on: versions, commit and hardware, without anything that names a person."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from nestling import __version__


def describe_machine() -> dict[str, object]:
    """Date, versions, commit and hardware as plain values."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "nestling": __version__,
        "commit": commit(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """The commit of the source tree this runs from; ``None`` for an installed package.

    ``+changes`` behind it: the sources differ from that commit.
    """
    source = Path(__file__).resolve().parents[2]
    if not (source.parent / ".git").exists():
        return None
    try:
        changed = _git(source, "status", "--porcelain", "--", ".")
        return _git(source, "rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or not our repository: the version has to do


def hardware() -> str:
    """Processor and cores in a few words."""
    return f"{processor()}, {os.cpu_count()} cores"


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
