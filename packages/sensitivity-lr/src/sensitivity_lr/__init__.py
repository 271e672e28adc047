"""SAGE: learning rates guided by each parameter's sensitivity."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from sensitivity_lr.adamax import SageAdamax
    from sensitivity_lr.adamw import SageAdamW
    from sensitivity_lr.analysis import SensitivityTracker, pruned, sensitivity, sparsity_curve
    from sensitivity_lr.groups import sage_names, sage_param_groups
    from sensitivity_lr.sgd import SageSGD
    from sensitivity_lr.wrapper import Sage

__all__ = [
    "Sage",
    "SageAdamW",
    "SageAdamax",
    "SageSGD",
    "SensitivityTracker",
    "pruned",
    "sage_names",
    "sage_param_groups",
    "sensitivity",
    "sparsity_curve",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Sage": ".wrapper",
        "SageAdamW": ".adamw",
        "SageAdamax": ".adamax",
        "SageSGD": ".sgd",
        "SensitivityTracker": ".analysis",
        "pruned": ".analysis",
        "sage_names": ".groups",
        "sage_param_groups": ".groups",
        "sensitivity": ".analysis",
        "sparsity_curve": ".analysis",
    },
)
