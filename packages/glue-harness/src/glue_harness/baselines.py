"""The baselines: the harness's own methods, for comparison."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from finetune_common.aliases import JsonObject, ParamGroup, Settings
from finetune_common.errors import ConfigurationError
from finetune_common.imported import unnamed
from glue_harness.baseline_options import (
    AdadeltaOptions,
    AdagradOptions,
    AdamOptions,
    ASGDOptions,
    EightBitAdamOptions,
    EightBitLionOptions,
    OptimizerOptions,
    RMSpropOptions,
    SGDOptions,
)

if TYPE_CHECKING:
    import torch


ParamGroups = list[ParamGroup]


@dataclass(frozen=True)
class NoOptions:
    """No options."""


class FullFineTuning:
    """Every parameter trains."""

    name = "full"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def load_kwargs(self) -> Settings:
        """Nothing is changed while loading."""
        return {}

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model as it is."""
        return model


class PlainActivations:
    """Saved tensors are kept as they are."""

    name = "none"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def around_forward(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def stats(self) -> JsonObject:
        """Nothing is stored in another form."""
        return {}


class TorchOptimizer:
    """An optimizer of `torch.optim`, found by the class attribute `name_in_torch`."""

    name: ClassVar[str]
    name_in_torch: ClassVar[str]
    Options: ClassVar[type[OptimizerOptions]] = AdamOptions
    fixed: ClassVar[Settings] = {}

    def __init__(self, options: OptimizerOptions) -> None:
        self.options = options

    def build(self, model: torch.nn.Module, param_groups: ParamGroups) -> torch.optim.Optimizer:
        """Return the optimizer over the groups."""
        import torch

        return getattr(torch.optim, self.name_in_torch)(param_groups, **asdict(self.options), **self.fixed)


class AdamW(TorchOptimizer):
    """Adam with decoupled weight decay, torch's fused kernel."""

    name, name_in_torch, fixed = "adamw", "AdamW", {"fused": True}


class Adam(TorchOptimizer):
    """Adam, torch's fused kernel (weight decay is L2)."""

    name, name_in_torch, fixed = "adam", "Adam", {"fused": True}


class Adamax(TorchOptimizer):
    """Adamax, Adam on the infinity norm (weight decay is L2)."""

    name, name_in_torch = "adamax", "Adamax"


class SGD(TorchOptimizer):
    """Stochastic gradient descent with momentum (weight decay is L2)."""

    name, name_in_torch, Options = "sgd", "SGD", SGDOptions


class ASGD(TorchOptimizer):
    """Averaged stochastic gradient descent (weight decay is L2)."""

    name, name_in_torch, Options = "asgd", "ASGD", ASGDOptions


class Adagrad(TorchOptimizer):
    """AdaGrad (weight decay is L2)."""

    name, name_in_torch, Options = "adagrad", "Adagrad", AdagradOptions


class Adadelta(TorchOptimizer):
    """Adadelta (weight decay is L2)."""

    name, name_in_torch, Options = "adadelta", "Adadelta", AdadeltaOptions


class RMSprop(TorchOptimizer):
    """RMSprop (weight decay is L2)."""

    name, name_in_torch, Options = "rmsprop", "RMSprop", RMSpropOptions


class RAdam(TorchOptimizer):
    """Rectified Adam (weight decay is L2)."""

    name, name_in_torch = "radam", "RAdam"


class NAdam(TorchOptimizer):
    """Adam with Nesterov momentum (weight decay is L2)."""

    name, name_in_torch = "nadam", "NAdam"


class _EightBit:
    name: ClassVar[str]
    name_there: ClassVar[str]
    Options: ClassVar[type[OptimizerOptions]]
    not_sharded = "keeps state in packed bits, which cannot be split: use --optimizer adamw"

    def __init__(self, options: OptimizerOptions) -> None:
        self.options = options

    def build(self, model: torch.nn.Module, param_groups: ParamGroups) -> torch.optim.Optimizer:
        """Return the optimizer, or say what is missing."""
        try:
            optim = import_module("bitsandbytes.optim")
        except ImportError:
            raise ConfigurationError(
                f"optimizer {self.name!r} needs bitsandbytes, which is not installed: run "
                "'pip install bitsandbytes' or use --optimizer adamw"
            ) from None
        groups, options = unnamed(param_groups), asdict(self.options)
        paged = options.pop("paged") and any(p.is_cuda for group in groups for p in group["params"])
        return getattr(optim, self.name_there)(groups, **options, is_paged=paged)


class AdamW8bit(_EightBit):
    """AdamW with its state in 8 bits, from bitsandbytes (tensors below 4,096 elements: in 32)."""

    name, name_there, Options = "adamw-8bit", "AdamW8bit", EightBitAdamOptions


class Lion8bit(_EightBit):
    """Lion with its state in 8 bits, from bitsandbytes (tensors below 4,096 elements: in 32)."""

    name, name_there, Options = "lion-8bit", "Lion8bit", EightBitLionOptions
