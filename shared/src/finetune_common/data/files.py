"""Read a file of any format, compressed or not, into a table."""

import gzip
import io
import zlib
from os import PathLike
from pathlib import Path
from typing import BinaryIO, cast

from finetune_common.data.arrow_files import read_arrow, read_parquet
from finetune_common.data.choices import Choices
from finetune_common.data.json_files import read_json, read_json_lines
from finetune_common.data.messages import cut, refusal
from finetune_common.data.separated import read_separated
from finetune_common.data.tables import Table

__all__ = ["FORMATS", "read_table"]

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
"""Endings of the files that can be read, in any case, each also with `.gz` after it."""


def read_table(path: str | PathLike[str], choices: Choices | None = None) -> Table:
    """Return the columns of a file and the places of its rows.

    Args:
        path: A file with one of `FORMATS`.
        choices: Delimiter and encoding of text files.

    Raises:
        ConfigurationError: A file that cannot be read, or without rows: the place and the remedy.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "TRAIN.CSV"
        >>> _ = file.write_text('text,label\\n"two\\nlines",yes\\none,no\\n')
        >>> table = read_table(file)
        >>> table.columns["label"], table.where([1])
        (['yes', 'no'], 'line 4')
    """
    path, choices = Path(path), choices or Choices()
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    packed = endings[-1:] == [".gz"]
    ending = endings[-2] if packed and len(endings) > 1 else endings[-1] if endings and not packed else ""
    if ending not in FORMATS:
        raise refusal(
            path,
            f"the name ends in {cut(path.suffix)}: give one of {', '.join(FORMATS)}, or one of them with .gz",
        )
    table = _read(path, packed, ending, choices)
    if not table.columns or not len(table):
        raise refusal(path, "no rows: a header and at least one row are needed")
    for name in table.columns:
        if not name.isascii() and name != name.encode(errors="replace").decode():
            raise refusal(path, f"the column {cut(name)} has an invalid character in its name: rename it")
    return table


def _read(path: Path, packed: bool, ending: str, choices: Choices) -> Table:
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            return _parse(path, ending, stream, choices)
    except UnicodeError as error:
        raise _not_decoded(path, packed, choices.encoding, error) from None
    except (gzip.BadGzipFile, zlib.error, EOFError):
        reason = "is not a complete gzip file: compress it again, or remove .gz from its name"
    except OSError as error:
        reason = f"{error.strerror or 'cannot be read'}: give a readable file"
    except ValueError:
        if "\0" not in str(path):
            raise
        reason = "no such file: give a readable file"
    raise refusal(path, reason)


def _parse(path: Path, ending: str, stream: gzip.GzipFile | io.BufferedReader, choices: Choices) -> Table:
    if ending in (".parquet", ".arrow"):
        return (read_parquet if ending == ".parquet" else read_arrow)(path, cast(BinaryIO, stream))
    mark = "\ufeff".encode(choices.encoding, "ignore")
    if mark and stream.peek(len(mark)).startswith(mark):
        stream.read(len(mark))
    with io.TextIOWrapper(stream, choices.encoding, newline="") as text:
        if ending in (".csv", ".tsv"):
            delimiter = choices.delimiter or ("," if ending == ".csv" else "\t")
            return read_separated(path, text, delimiter, choices)
        return read_json(path, text) if ending == ".json" else read_json_lines(path, text)


def _not_decoded(path: Path, packed: bool, encoding: str, error: UnicodeError) -> ValueError:
    """Return an error that names the line with an invalid byte."""
    line, before, position = "", b"", -1
    with gzip.open(path) if packed else path.open("rb") as stream:
        data = cast(BinaryIO, stream).read()
    try:
        data.decode(encoding)
    except UnicodeDecodeError as invalid:
        before, position = data[: invalid.start], invalid.start
    except UnicodeError:
        pass
    if position >= 0:
        lines = before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
        line = f"line {lines}: byte {data[position]:#04x} "
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    like = "utf-16, which its first bytes look like" if wide else "cp1252 or utf-16"
    return refusal(path, f"{line}is not {encoding.upper()}: give --encoding, for instance {like}")
