"""Fine-tune transformers with any combination of installed methods, and report what came out."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from glue_harness.config.fields import RunConfig
    from glue_harness.config.parsing import parse_mapping
    from glue_harness.run.assembly import open_run
    from glue_harness.run.entry import run

__all__ = ["RunConfig", "open_run", "parse_mapping", "run"]

__getattr__ = lazy_exports(
    __name__,
    {
        "RunConfig": ".config.fields",
        "open_run": ".run.assembly",
        "parse_mapping": ".config.parsing",
        "run": ".run",
    },
)
