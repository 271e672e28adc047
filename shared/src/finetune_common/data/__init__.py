"""Load a task, tokenise it once, and draw batches from it; the seed decides their order."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from finetune_common.data.batches import (
        Collator,
        epoch_batches,
        evaluation_batches,
        make_loader,
        to_row_order,
        token_lengths,
    )
    from finetune_common.data.choices import Choices
    from finetune_common.data.content import changed_rows, fingerprint
    from finetune_common.data.hub import read_dataset
    from finetune_common.data.known import known_schema
    from finetune_common.data.lengths import token_facts
    from finetune_common.data.loading import load_task
    from finetune_common.data.mixing import batch_counts, mixed_batches
    from finetune_common.data.official import read_official
    from finetune_common.data.own_files import OwnRows, load_own_files, read_own_files, read_own_tables
    from finetune_common.data.schema import Schema
    from finetune_common.data.splitting import held_out
    from finetune_common.data.tokens import default_cache_dir, tokenize

__all__ = [
    "Choices",
    "Collator",
    "OwnRows",
    "Schema",
    "batch_counts",
    "changed_rows",
    "default_cache_dir",
    "epoch_batches",
    "evaluation_batches",
    "fingerprint",
    "held_out",
    "known_schema",
    "load_own_files",
    "load_task",
    "make_loader",
    "mixed_batches",
    "read_dataset",
    "read_official",
    "read_own_files",
    "read_own_tables",
    "to_row_order",
    "token_facts",
    "token_lengths",
    "tokenize",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Choices": ".choices",
        "Collator": ".batches",
        "OwnRows": ".own_files",
        "Schema": ".schema",
        "batch_counts": ".mixing",
        "changed_rows": ".content",
        "default_cache_dir": ".tokens",
        "epoch_batches": ".batches",
        "evaluation_batches": ".batches",
        "fingerprint": ".content",
        "held_out": ".splitting",
        "known_schema": ".known",
        "load_own_files": ".own_files",
        "load_task": ".loading",
        "make_loader": ".batches",
        "mixed_batches": ".mixing",
        "read_dataset": ".hub",
        "read_official": ".official",
        "read_own_files": ".own_files",
        "read_own_tables": ".own_files",
        "to_row_order": ".batches",
        "token_facts": ".lengths",
        "token_lengths": ".batches",
        "tokenize": ".tokens",
    },
)
