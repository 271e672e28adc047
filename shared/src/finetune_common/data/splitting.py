"""Take rows out of training to evaluate on: a share of each class, or named parts of given sizes."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from hashlib import blake2b

from finetune_common.aliases import Rows
from finetune_common.data.messages import refusal
from finetune_common.errors import ConfigurationError
from finetune_common.tasks import Task

__all__ = ["held_out", "stratified", "with_share"]


def _keys(texts: Sequence[tuple[str, ...]], seed: int) -> list[bytes]:
    """Return a hash of the seed and the texts of each row."""
    return [
        blake2b(repr((seed, text)).encode(errors="surrogatepass"), digest_size=8).digest() for text in texts
    ]


def held_out(
    texts: Sequence[tuple[str, ...]], parts: Mapping[str, int], seed: int = 0
) -> tuple[list[int], dict[str, list[int]]]:
    """Take parts of given sizes out of all rows; no text is in two parts, nor in a part and the rest.

    Rows are ordered by a hash of the seed and their texts, and fill one part after another: neither the order
    of the file nor the seed of a run matters. Rows with the same texts stay together; if a part has no room
    for all of them, they are not taken, so that each part has exactly its size.

    Args:
        texts: Of each row.
        parts: Name → rows, each at least 1.
        seed: Decides which rows are drawn.

    Returns:
        The remaining rows, and the rows of each part, all in the order of the file.

    Raises:
        ConfigurationError: No row would remain, or texts repeat so often that a part cannot be filled.

    Examples:
        >>> left, parts = held_out([("a",), ("b",), ("c",), ("a",), ("d",)], {"choose": 1, "score": 2})
        >>> left, parts
        ([2, 4], {'choose': [1], 'score': [0, 3]})
    """
    if sum(parts.values()) >= len(texts):
        named = ", ".join(f"{name} {rows:,}" for name, rows in parts.items())
        raise ConfigurationError(
            f"hold_out: {named} leave none of {len(texts):,} rows to train on: hold out fewer"
        )
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, key in enumerate(_keys(texts, seed)):
        groups[key].append(row)
    rows_of: dict[str, list[int]] = {name: [] for name in parts}
    for key in sorted(groups):
        rows = groups[key]
        roomy = (name for name, wanted in parts.items() if len(rows_of[name]) + len(rows) <= wanted)
        if (name := next(roomy, None)) is not None:
            rows_of[name] += rows
    for name, wanted in parts.items():
        if len(rows_of[name]) < wanted:
            raise ConfigurationError(
                f"hold_out: {name} gets {len(rows_of[name]):,} of {wanted:,} rows: texts that repeat stay "
                "together: hold out fewer"
            )
    taken = {row for rows in rows_of.values() for row in rows}
    left = [row for row in range(len(texts)) if row not in taken]
    if not left:
        raise ConfigurationError("hold_out: no row is left to train on: hold out fewer")
    return left, {name: sorted(rows) for name, rows in rows_of.items()}


def stratified(
    texts: Sequence[tuple[str, ...]], classes: Sequence[Hashable], share: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Split rows in two, each class in proportion; rows with the same texts stay together.

    Rows are ordered by a hash of the seed and their texts, so that neither the order of the file nor the seed
    of a run matters: all seeds of an experiment are evaluated on the same rows. A text that repeats so often
    that it would lead further from the share stays in the first part.

    Args:
        texts: Of each row.
        classes: Of each row; the proportion holds within each class.
        share: The second part's share of the rows, above 0 and below 1. A class with at least two different
            texts has a row in both parts.
        seed: Decides which rows are drawn.

    Returns:
        The rows of the first and of the second part, each in the order of the file.

    Examples:
        >>> stratified([("a",), ("b",), ("c",), ("d",), ("a",)], [0, 0, 1, 1, 0], share=0.5)[1]
        [1, 3]
    """
    keys = _keys(texts, seed)
    homes: dict[bytes, Hashable] = {}
    groups: dict[Hashable, dict[bytes, list[int]]] = defaultdict(dict)
    for row, (key, label) in enumerate(zip(keys, classes, strict=True)):
        groups[homes.setdefault(key, label)].setdefault(key, []).append(row)
    taken: set[int] = set()
    for of_class in groups.values():
        rows = sum(map(len, of_class.values()))
        same = [of_class[key] for key in sorted(of_class)]
        taken.update(*_nearest(same, max(1, round(share * rows))))
    return [row for row in range(len(texts)) if row not in taken], sorted(taken)


def _nearest(groups: Sequence[list[int]], wanted: int) -> list[list[int]]:
    """Return groups of rows, in order, each of which brings the number of rows nearer to the wanted one.

    At least one, if that leaves another.
    """
    chosen: list[list[int]] = []
    missing = wanted
    for group in groups:
        if len(group) <= 2 * missing:
            chosen.append(group)
            missing -= len(group)
    chosen = chosen or [min(groups, key=len)]
    return chosen if len(chosen) < len(groups) else chosen[:-1]


def with_share(
    task: Task, splits: dict[str, Rows], files: dict[str, str], share: float
) -> tuple[dict[str, Rows], dict[str, str]]:
    """Return splits with a share of the training rows as `validation`, and the file of each.

    Args:
        task: The task of the rows.
        splits: Split → rows, `train` among them.
        files: Split → file.
        share: Of the training rows, above 0 and below 1; see `stratified`.

    Raises:
        ConfigurationError: Too few different texts.
    """
    rows = splits["train"]
    texts = list(zip(*(rows[name] for name in task.columns), strict=True))
    if task.regression:
        classes = [0] * len(texts)
    else:
        classes = [tuple(label) if task.several else label for label in rows["label"]]
    training, evaluation = stratified(texts, classes, share)
    if not training or not evaluation:
        raise refusal(
            files["train"],
            f"{len(texts):,} rows with too few different texts to split by --validation-share {share:g}: "
            "give a validation file",
        )
    picked = {
        split: {column: [values[row] for row in part] for column, values in rows.items()}
        for split, part in (("train", training), ("validation", evaluation))
    }
    sources = {"train": files["train"], "validation": files["train"]}
    others = [split for split in splits if split != "train"]
    return picked | {split: splits[split] for split in others}, sources | {s: files[s] for s in others}
