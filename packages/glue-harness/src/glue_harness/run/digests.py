"""Digests of a folder's files, to detect errors of a disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import xxhash

from finetune_common.errors import ConfigurationError
from glue_harness.files import atomic

__all__ = ["check_undamaged", "damage", "digest_of", "write_digests"]

DIGESTS = "digests.json"


def digest_of(file: Path) -> str:
    """Return the digest of a file's content, by a hash that is faster than a disk."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]


def write_digests(folder: Path, also: dict[str, str] | None = None) -> None:
    """Write the digests of a folder's files.

    Args:
        folder: Receives `digests.json`.
        also: Name → another digest that is accepted for this file.
    """
    files = [file for file in folder.iterdir() if file.is_file() and file.name != DIGESTS]
    digests = {file.name: [digest_of(file), *(also or {}).get(file.name, "").split()] for file in files}
    with atomic(folder / DIGESTS) as beside:
        beside.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path, names: Iterable[str] | None = None) -> str:
    """Return which file is damaged and how, or "". Folders of earlier versions have no digests.

    Args:
        folder: May hold `digests.json`.
        names: The files to check; by default all that it lists.
    """
    try:
        known = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        for name in known if names is None else names:
            if digest_of(folder / name) not in known[name]:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        return "" if missing == DIGESTS else f"{missing} is missing"
    except (ValueError, LookupError, TypeError, OSError) as error:
        return f"{DIGESTS} or a file that it lists cannot be read: {' '.join(str(error).split())[:100]}"
    return ""


def check_undamaged(folder: Path, option: str) -> None:
    """Refuse a model's folder in which a file is not as it was written.

    Args:
        folder: May hold `digests.json`.
        option: What named the folder.
    """
    if reason := damage(folder):
        raise ConfigurationError(
            f"{option}: {folder} is damaged ({reason}): restore the file, or run again with --overwrite; if "
            f"you changed it yourself, remove {DIGESTS}"
        )
