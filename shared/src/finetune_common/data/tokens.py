"""Tokenise a task once and keep the result on disk, named by a hash of its content."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from hashlib import file_digest, sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

from finetune_common.aliases import JsonObject
from finetune_common.data.content import fingerprint, rows_digest
from finetune_common.errors import ConfigurationError, check_number
from finetune_common.tasks import Task, get_task

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["default_cache_dir", "encode", "tokenize"]

_FORMAT = 3
_CHUNK = 2048
_DIGESTS = "digests.json"


def default_cache_dir() -> Path:
    """Return the folder of tokenised data: `$FINETUNE_CACHE`, else `~/.cache/finetune-common`."""
    return Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-common")


def tokenize(
    data: "Mapping[str, Dataset]",
    tokenizer: "PreTrainedTokenizerBase",
    task: str | Task,
    max_length: int,
    cache_dir: str | PathLike[str] | None = None,
    *,
    content: JsonObject | None = None,
) -> "DatasetDict":
    """Return the splits as token ids, from disk if they were tokenised before.

    Pairs are truncated longest first, nothing is padded. The columns are `input_ids`, `attention_mask`,
    `token_type_ids` (when the tokenizer gives them), `labels` (zeros and ones for several labels a row) and
    `idx`. The name on disk is a hash of the task's name and version, every text and label, the tokenizer's
    whole state and `max_length`; the folder appears whole or not at all, two processes may write it at once,
    and a damaged one is replaced.

    Args:
        data: Split → rows, as from `load_task`.
        tokenizer: A fast tokenizer.
        task: The task or its name.
        max_length: The most tokens a row keeps, special tokens included.
        cache_dir: Where to keep the result; by default `finetune_common.data.default_cache_dir()`.
        content: `fingerprint(task, data)`, if known already.

    Raises:
        ConfigurationError: A slow tokenizer, a `max_length` that it does not allow, a folder that cannot be
            written.
    """
    task = get_task(task)
    if not tokenizer.is_fast:
        raise ConfigurationError(f"tokenizer {type(tokenizer).__name__} has no fast form, which is needed")
    tokenizer = cast("PreTrainedTokenizerFast", tokenizer)
    special = tokenizer.num_special_tokens_to_add(pair=len(task.columns) == 2)
    longest = cast("int", tokenizer.model_max_length)  # pyright: ignore[reportUnknownMemberType]  # untyped
    check_number("max_length", max_length, above=special, at_most=longest)
    for split, rows in data.items():
        if not len(rows):
            raise ConfigurationError(f"{task.name}: {split} has no rows to tokenise")
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    folder = root / f"{_safe(task.name)}-{_key(data, tokenizer, task, max_length, content)[:32]}"
    try:
        if folder.is_dir() and not _is_whole(folder, list(data)):
            _remove(folder)
        if not folder.is_dir():
            _write(folder, data, tokenizer, task, max_length)
    except OSError as error:
        raise ConfigurationError(
            f"{root}: tokenised data cannot be written ({error.strerror}); "
            f"FINETUNE_CACHE names another folder"
        ) from error
    return _read(folder, list(data))


def encode(
    tokenizer: "PreTrainedTokenizerBase", first: list[str], second: list[str] | None, max_length: int
) -> dict[str, list[list[int]]]:
    """Return the token columns of texts or pairs, truncated longest first and not padded.

    An empty text of a tokenizer without special tokens is one special token: models take no empty row. The
    padding's is the last choice, since a decoder's head reads the last token that differs from it.
    """
    encoded = tokenizer(first, second, truncation=True, max_length=max_length)
    padding = cast("int | None", tokenizer.pad_token_id)
    special = (token for token in tokenizer.all_special_ids if token != padding)
    alone = {"input_ids": next(special, padding or 0), "attention_mask": 1, "token_type_ids": 0}
    return {
        name: [row or [token] for row in cast("list[list[int]]", encoded[name])]
        for name, token in alone.items()
        if name in encoded
    }


def _safe(name: str) -> str:
    """Return a safe part of a file name, so that no task's name leads out of the cache's folder."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:40] or "task"


def _key(
    data: "Mapping[str, Dataset]",
    tokenizer: "PreTrainedTokenizerFast",
    task: Task,
    max_length: int,
    content: JsonObject | None,
) -> str:
    digest = sha256(
        json.dumps([_FORMAT, task.name, task.version, task.labels, task.kind, max_length]).encode()
    )
    digest.update(_tokenizer_state(tokenizer).encode())
    digest.update(json.dumps(content or fingerprint(task, data), sort_keys=True).encode())
    for split, rows in data.items():
        digest.update(json.dumps([split, rows_digest(rows, ["idx"])]).encode())
    return digest.hexdigest()


def _tokenizer_state(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return all settings that affect the ids, without truncation and padding, which each call sets."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    sides = [tokenizer.truncation_side, tokenizer.model_input_names, type(tokenizer).__name__]
    return json.dumps(sides) + backend.to_str()


def _write(
    folder: Path,
    data: "Mapping[str, Dataset]",
    tokenizer: "PreTrainedTokenizerFast",
    task: Task,
    max_length: int,
) -> None:
    import pyarrow as pa

    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for split, rows in data.items():
            batches = _encode(rows, tokenizer, task, max_length)
            first = next(batches)
            with (
                pa.OSFile(str(unfinished / f"{split}.arrow"), "wb") as sink,
                pa.ipc.new_stream(sink, first.schema) as writer,
            ):
                writer.write_batch(first)
                for batch in batches:
                    writer.write_batch(batch)
        digests = {file.name: _digest(file) for file in unfinished.glob("*.arrow")}
        (unfinished / _DIGESTS).write_text(json.dumps(digests))
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _encode(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerFast", task: Task, max_length: int
) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    from finetune_common.metrics import multi_hot

    types = {"input_ids": pa.int32(), "attention_mask": pa.int8(), "token_type_ids": pa.int8()}
    label_type = pa.float32() if task.regression else pa.list_(pa.int8()) if task.several else pa.int64()
    for chunk in rows.iter(_CHUNK):
        first, *second = (chunk[name] for name in task.columns)
        pair = second[0] if second else None
        encoded = encode(tokenizer, first, pair, max_length)
        columns = {name: pa.array(tokens, type=pa.list_(types[name])) for name, tokens in encoded.items()}
        labels = multi_hot(chunk["label"], task.num_labels).tolist() if task.several else chunk["label"]
        columns["labels"] = pa.array(labels, type=label_type)
        columns["idx"] = pa.array(chunk["idx"], type=pa.int32())
        yield pa.RecordBatch.from_pydict(columns)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def _is_whole(folder: Path, splits: list[str]) -> bool:
    """Say whether the files of these splits are undamaged."""
    try:
        digests = json.loads((folder / _DIGESTS).read_text())
        return all(digests[f"{split}.arrow"] == _digest(folder / f"{split}.arrow") for split in splits)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _remove(folder: Path) -> None:
    """Move a folder away in one operation, then delete it; another process may do the same."""
    away = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        folder.rename(away / "damaged")
    except FileNotFoundError:
        pass
    finally:
        shutil.rmtree(away, ignore_errors=True)


def _read(folder: Path, splits: list[str]) -> "DatasetDict":
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in splits})
