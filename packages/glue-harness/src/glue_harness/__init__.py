"""Fine-tune encoders on GLUE with any combination of installed methods, and report what came out."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from glue_harness.config import RunConfig
    from glue_harness.parsing import parse_mapping
    from glue_harness.training import run

__all__ = ["RunConfig", "parse_mapping", "run"]

__getattr__ = lazy_exports(
    __name__, {"RunConfig": ".config", "parse_mapping": ".parsing", "run": ".training"}
)
