"""Contracts that every method of this project must meet, for each package's tests."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from finetune_common.testing.distributed import run_two_processes
    from finetune_common.testing.optimizers import OptimizerCase, check_optimizer

__all__ = ["OptimizerCase", "check_optimizer", "run_two_processes"]

__getattr__ = lazy_exports(
    __name__,
    {
        "OptimizerCase": ".optimizers",
        "check_optimizer": ".optimizers",
        "run_two_processes": ".distributed",
    },
)
