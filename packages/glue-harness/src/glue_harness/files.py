"""Files and folders that appear whole or not at all, and one-line errors if they cannot be written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_common.errors import ConfigurationError

__all__ = ["UnwritableError", "sync", "whole", "whole_folder", "writing"]


class UnwritableError(ConfigurationError):
    """Something could not be written: the disk is full, a quota or a limit is reached, a pipe is closed."""


def _reason(error: BaseException | None) -> str:
    """Return the system's reason, even if a library wraps the error or only quotes it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno)
        if number := re.search(r"os error (\d+)", str(error)):
            return os.strerror(int(number[1]))
        error = error.__cause__ or error.__context__
    return ""


@contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turn the system's errors in writing into one line.

    Args:
        what: The thing written in this context: a path, or words.

    Raises:
        UnwritableError: The system refused to write.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        if reason := _reason(error):
            raise UnwritableError(
                f"{what}: {reason}: make room, or give a file or folder that can be "
                "written; the same command continues"
            ) from None
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside another; the file made there replaces the other once it is on disk.

    If that fails, nothing new is left, and the old file stays.

    Args:
        path: A file or a folder; its parent folder is made if missing.

    Raises:
        UnwritableError: The system refused to write.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "result.txt"
        >>> with whole(file) as beside:
        ...     written = beside.write_text("42")
        >>> file.read_text(), [path.name for path in file.parent.iterdir()]
        ('42', ['result.txt'])
    """
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            for part in (*beside.rglob("*"), beside):
                sync(part)
            if path.is_dir():
                shutil.rmtree(path)
            beside.replace(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            beside.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside a path, which takes its place as in `whole`."""
    with whole(path) as beside:
        beside.mkdir()
        yield beside


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
