"""How long texts are in tokens, and how many do not fit."""

from typing import TYPE_CHECKING

import numpy as np

from finetune_common.aliases import JsonObject
from finetune_common.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["token_facts"]


def token_facts(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", task: Task, max_length: int, sample: int = 2000
) -> JsonObject:
    """Return median, 95 % quantile and share truncated of the rows' lengths, special tokens included.

    Args:
        rows: A split, as from `load_task`; of a long one, `sample` evenly spread rows are measured.
        tokenizer: A fast tokenizer.
        task: Says which columns are text.
        max_length: Most tokens that a row keeps.
        sample: Most rows to measure.

    Examples:
        >>> from finetune_common.data import load_task
        >>> from finetune_common.demo import demo_tokenizer
        >>> from finetune_common.tasks import get_task
        >>> rows = load_task("demo-entailment", splits=["validation"])["validation"]
        >>> facts = token_facts(rows, demo_tokenizer(), get_task("demo-entailment"), 16)
        >>> facts["rows"], facts["sampled"]
        (500, False)
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(sample, len(rows))).astype(int))
    texts = rows.select(chosen)
    first, *second = (texts[name][:] for name in task.columns)
    encoded = tokenizer(first, second[0] if second else None, truncation=False, verbose=False)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    return {
        "median": int(np.median(lengths)),
        "most": int(np.quantile(lengths, 0.95)),
        "truncated": float((lengths > max_length).mean()),
        "max_length": max_length,
        "rows": len(lengths),
        "sampled": len(lengths) < len(rows),
    }
