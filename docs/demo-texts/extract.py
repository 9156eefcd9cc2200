"""Rebuild the demo's texts in `src/nestling/demo/texts/` from their sources.

    python docs/demo-texts/extract.py SOURCES OUT

`SOURCES` holds the unpacked packages that `src/nestling/demo/texts/SOURCES.md` names, one folder
each: `janeaustenr/` and `sword-text-sparv/` and `unicode-data/` (Debian, `apt-get download` and
`dpkg -x`) and `chinese-poetry/` (npm, `npm pack` and `tar xzf`). The Python text is the standard
library of the interpreter that runs this script. Every text is cut at a line end to at most
`LIMIT` bytes; no text depends on the clock, the locale or the order of a directory.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import struct
import sys
import sysconfig
import zlib
from pathlib import Path

LIMIT = 480_000


def english(root: Path) -> str:
    """Jane Austen, Pride and Prejudice: the lines of one vector of R's lazy-load database."""
    raw = next(root.rglob("data/Rdata.rdb")).read_bytes()
    start = 0
    while start < len(raw):
        unpack = zlib.decompressobj()
        data = unpack.decompress(raw[start + 4 :])
        if b"PRIDE AND PREJUDICE" in data[:200]:
            return "\n".join(_r_strings(data)).replace("\n\n\n", "\n\n")
        start = len(raw) - len(unpack.unused_data)
    raise SystemExit("janeaustenr: no Pride and Prejudice in Rdata.rdb")


def _r_strings(data: bytes) -> list[str]:
    """The character vector of an R serialization (XDR, version 3): flags, length, bytes."""
    at = 2 + 12 + 4 + 5  # "X\n", three versions, the native encoding's name
    flags, count = struct.unpack_from(">II", data, at)
    if flags & 0xFF != 16:
        raise SystemExit(f"janeaustenr: expected a character vector, got type {flags & 0xFF}")
    at, lines = at + 8, []
    for _ in range(count):
        size = struct.unpack_from(">I", data, at + 4)[0]
        lines.append(data[at + 8 : at + 8 + size].decode("utf-8"))
        at += 8 + size
    return lines


def python(_: Path) -> str:
    """Top-level modules of the standard library that carry no notice of another author."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in files]
    kept = [t for t in texts if len(t) > 2000 and not re.search("copyright|licen[cs]e", t, re.I)]
    random.Random(0).shuffle(kept)
    return "\n\n".join(text.strip("\n") for text in kept)


def chinese(root: Path) -> str:
    """Poems of the Tang: title, author, verses, each once, shuffled: the tail is typical."""
    poems: list[dict] = []
    for number in (0, 1000):
        path = next(root.rglob(f"quantangshi/poet.tang.{number}.json"))
        poems += json.loads(path.read_text(encoding="utf-8"))
    texts = {
        "".join(poem["paragraphs"]): "\n".join([poem["title"], poem["author"], *poem["paragraphs"]])
        for poem in poems
        if poem["paragraphs"]
    }
    ordered = list(texts.values())
    random.Random(0).shuffle(ordered)
    return "\n\n".join(ordered)


def spanish(root: Path) -> str:
    """Reina-Valera 1909, New Testament: a SWORD zText module, mark-up removed."""
    base = next(root.rglob("nt.bzs"))
    index, raw = base.read_bytes(), base.with_suffix(".bzz").read_bytes()
    text = ""
    for at in range(0, len(index), 12):
        offset, size, _ = struct.unpack_from("<III", index, at)
        text += zlib.decompress(raw[offset : offset + size]).decode("utf-8")
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"<title[^>]*>(.*?)</title>", r"\n\n\1\n", text)
    text = re.sub(r"<chapter n=[^>]*sID[^>]*>", "\n\n", text)
    text = re.sub(r'<div [^>]*sID[^>]*type="x-p"[^>]*>', "\n", text)
    text = re.sub(r"<[^>]*>", "", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" *\n *", "\n", re.sub(" +", " ", text))).strip()


def tables(root: Path) -> str:
    """UnicodeData.txt in blocks of 48 consecutive lines, shuffled so that the tail is typical."""
    lines = next(root.rglob("UnicodeData.txt")).read_text(encoding="ascii").splitlines()
    blocks = ["\n".join(lines[at : at + 48]) for at in range(0, len(lines), 48)]
    random.Random(0).shuffle(blocks)
    return "\n".join(blocks)


def main(sources: Path, out: Path) -> None:
    """Write the five packed texts."""
    folders = {
        english: "janeaustenr",
        python: "python",
        chinese: "chinese-poetry",
        spanish: "sword-text-sparv",
        tables: "unicode-data",
    }
    for extract, folder in folders.items():
        data = extract(sources / folder).encode("utf-8")
        data = data[: data.rfind(b"\n", 0, LIMIT) + 1] if len(data) > LIMIT else data
        packed = gzip.compress(data, compresslevel=9, mtime=0)
        (out / f"{extract.__name__}.txt.gz").write_bytes(packed)
        print(f"{extract.__name__:8s} {len(data):8,d} bytes, packed {len(packed):8,d}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
