"""Read parquet and arrow files; pyarrow is imported when one is read."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from finetune_common.aliases import Rows
from finetune_common.data.messages import cut, listed, refusal
from finetune_common.data.tables import Table, flatten
from finetune_common.data.values import is_list, is_record

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_arrow", "read_parquet", "table_of"]


def read_parquet(path: Path, stream: BinaryIO) -> Table:
    """Return the columns of a parquet file.

    Raises:
        ConfigurationError: Not a parquet file, or one with two columns of one name.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(pa.BufferReader(stream.read()))
    except (pa.ArrowException, OSError) as error:
        raise refusal(path, f"not a parquet file: {' '.join(str(error).split())[:160]}") from None
    return table_of(str(path), table)


def read_arrow(path: Path, stream: BinaryIO) -> Table:
    """Return the columns of an arrow file, in the form of a file or of a stream.

    Raises:
        ConfigurationError: Not an arrow file, or one with two columns of one name.
    """
    import pyarrow as pa

    data = stream.read()
    try:
        with (pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream)(data) as reader:
            table = reader.read_all()
    except (pa.ArrowException, OSError) as error:
        raise refusal(path, f"not an arrow file: {' '.join(str(error).split())[:160]}") from None
    return table_of(str(path), table)


def table_of(name: str, arrow: "pa.Table") -> Table:
    """Return an arrow table's columns as Python values, with nested fields by path, and class names."""
    if twice := [column for column, count in Counter(arrow.column_names).items() if count > 1]:
        raise refusal(name, f"several columns named {listed(map(cut, twice), 80)}: give each its own name")
    from pyarrow import types

    columns: Rows = {}
    for column in arrow.column_names:
        values = _values(name, column, arrow[column])
        if types.is_struct(arrow.schema.field(column).type):
            rows = [flatten({column: {} if value is None else value}) for value in values]
            names = dict.fromkeys(inner for row in rows for inner in row)
            values_by_name = {inner: [row.get(inner) for row in rows] for inner in names}
        else:
            values_by_name = {column: values}
        if common := columns.keys() & values_by_name.keys():
            raise refusal(name, f"the field {cut(min(common))} occurs twice: give each its own name")
        columns |= values_by_name
    return Table(name, columns, range(1, arrow.num_rows + 1), "row", _classes(arrow.schema.metadata or {}))


def _values(name: str, column: str, values: "pa.ChunkedArray") -> list[object]:
    try:
        cells = values.to_pylist()
    except (ValueError, OverflowError) as error:  # invalid text, a date out of Python's range
        raise refusal(
            name,
            f"column {cut(column)} cannot be read: {' '.join(str(error).split())[:120]}: store it as text",
        ) from None
    try:
        return [_decoded(cell) for cell in cells] if "binary" in str(values.type) else cells
    except UnicodeDecodeError:  # images and the like, refused only as a text or a label
        return cells


def _decoded(value: object) -> object:
    """Return a value with bytes as text: some programs write text without saying that it is text."""
    if isinstance(value, bytes):
        return value.decode()
    if is_record(value):
        return {name: _decoded(inner) for name, inner in value.items()}
    return [_decoded(inner) for inner in value] if is_list(value) else value


def _classes(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Return the class names that `datasets` writes beside the columns."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        columns: dict[str, tuple[str, ...]] = {}
        for column, feature in features.items():
            inner = feature.get("feature", feature) if is_record(feature) else None
            names = inner.get("names") if is_record(inner) and inner.get("_type") == "ClassLabel" else None
            if is_list(names) and names:
                columns[column] = tuple(map(str, names))
        return columns
    except (KeyError, ValueError, AttributeError, TypeError):
        return {}
