"""Take a share of the training rows for evaluation, with each class's share of it."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from hashlib import blake2b

__all__ = ["stratified"]


def stratified(
    texts: Sequence[tuple[str, ...]], classes: Sequence[Hashable], share: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Split rows in two, each class in proportion; rows with the same texts stay together.

    Rows are ordered by a hash of the seed and their texts, so that the order of the file and the seed of a
    run do not matter: every seed of an experiment is evaluated on the same rows.

    Args:
        texts: Of each row.
        classes: Of each row; the proportion holds within each class.
        share: Of the rows of the second part, above 0 and below 1. A class of two different texts or more has
            at least one row in either part.
        seed: Another one draws other rows.

    Returns:
        The rows of the first and of the second part, each in the order of the file.

    Examples:
        >>> stratified([("a",), ("b",), ("c",), ("d",), ("a",)], [0, 0, 1, 1, 0], share=0.5)[1]
        [1, 3]
    """
    keys = [
        blake2b(repr((seed, text)).encode(errors="surrogatepass"), digest_size=8).digest() for text in texts
    ]
    homes: dict[bytes, Hashable] = {}
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, (key, label) in enumerate(zip(keys, classes, strict=True)):
        groups[homes.setdefault(key, label)].append(row)
    taken: set[int] = set()
    for rows in groups.values():
        rows.sort(key=keys.__getitem__)
        wanted = max(1, round(share * len(rows)))
        while wanted < len(rows) and keys[rows[wanted]] == keys[rows[wanted - 1]]:
            wanted += 1  # rows with the same texts stay together
        if wanted == len(rows):  # the last texts stay in the first part
            wanted = next(at for at, row in enumerate(rows) if keys[row] == keys[rows[-1]])
        taken.update(rows[:wanted])
    return [row for row in range(len(texts)) if row not in taken], sorted(taken)
