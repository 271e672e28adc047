"""Digests of a folder's files, to detect errors of a disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import xxhash

from glue_harness.files import whole

__all__ = ["damage", "digest_of", "write_digests"]

DIGESTS = "digests.json"


def digest_of(file: Path) -> str:
    """Return the digest of a file's content, by a hash that is several times as fast as a disk."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]


def write_digests(folder: Path, also: dict[str, str] | None = None) -> None:
    """Write the digests of a folder's files.

    Args:
        folder: Receives `digests.json`.
        also: Name → another digest that is accepted for this file.
    """
    files = [file for file in folder.iterdir() if file.name != DIGESTS]
    digests = {file.name: [digest_of(file), *(also or {}).get(file.name, "").split()] for file in files}
    with whole(folder / DIGESTS) as beside:
        beside.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path, names: Iterable[str]) -> str:
    """Return which file is damaged and how, or "". Checkpoints of earlier versions have no digests."""
    try:
        known = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        for name in names:
            if digest_of(folder / name) not in known[name]:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        return "" if missing == DIGESTS else f"{missing} is missing"
    except (ValueError, LookupError, TypeError, OSError) as error:
        return f"{DIGESTS} or a file that it lists cannot be read: {' '.join(str(error).split())[:100]}"
    return ""
