"""One run: assembled (`assembly`), trained (`loop`), and written to its folder (`records`, `checkpoint`).

The package has the name of the function and can be called: `from glue_harness import run; run(config)`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from finetune_common.aliases import JsonObject

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it: it warns of missing kernels

if TYPE_CHECKING:
    from glue_harness.config.fields import RunConfig
    from glue_harness.run.loop import Training


class _CallableModule(ModuleType):
    """A callable module: importing `glue_harness.run` as a module must not hide the function `run`."""

    def __call__(
        self,
        config: RunConfig,
        on_evaluation: Callable[[Training], None] | None = None,
        start_from: Path | None = None,
    ) -> JsonObject:
        """Train a model on a task; see `glue_harness.run.entry.run`."""
        from glue_harness.run.entry import run

        return run(config, on_evaluation, start_from)


run = sys.modules[__name__]
run.__class__ = _CallableModule
