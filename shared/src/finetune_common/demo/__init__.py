"""Three small tasks generated from an English grammar whose rules are known, and a tokenizer for them."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from finetune_common.demo.rows import demo_rows
    from finetune_common.demo.tokenizer import demo_tokenizer, demo_vocabulary

__all__ = ["demo_rows", "demo_tokenizer", "demo_vocabulary"]

__getattr__ = lazy_exports(
    __name__,
    {"demo_rows": ".rows", "demo_tokenizer": ".tokenizer", "demo_vocabulary": ".tokenizer"},
)
