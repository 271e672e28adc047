"""torch's schedulers, one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import SWALR

from finetune_common.testing.optimizers.case import Factory, OptimizerCase
from finetune_common.testing.optimizers.training import assert_equal, pair, step

__all__ = ["SCHEDULES", "follows_schedulers"]

CYCLED = ("lr", "betas", "momentum", "initial_lr")
"""Settings that schedulers change."""

SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], schedules.LRScheduler]] = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda step: 0.5**step),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: schedules.StepLR(o, 2),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: schedules.ConstantLR(o, total_iters=2),
    "LinearLR": lambda o: schedules.LinearLR(o, total_iters=3),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.7),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 3),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 2),
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, patience=0),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 1e-3, 1e-2, 2, cycle_momentum=_has_momentum(o)),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=_has_momentum(o)),
    "ChainedScheduler": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, total_iters=2), schedules.ExponentialLR(o, 0.9)]
    ),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, total_iters=2), schedules.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "SWALR": lambda o: SWALR(o, swa_lr=0.02, anneal_epochs=3),
}
"""Each scheduler of torch, with momentum or β₁ cycled if possible."""


def follows_schedulers(cls: Factory, case: OptimizerCase) -> None:
    """torch's schedulers change the same settings as in torch's optimizers, and the step uses them."""
    for name, make in SCHEDULES.items():
        params, expected_params = pair(), pair()
        optimizer, by_hand = cls(params, **case.settings), cls(expected_params, **case.settings)
        torchs = _torchs_own(optimizer)
        schedule, torchs_schedule = make(optimizer), make(torchs)
        for _ in range(4):
            group, torchs_group = optimizer.param_groups[0], torchs.param_groups[0]
            expected = {
                setting: torchs_group[setting]
                for setting in CYCLED
                if setting in group and setting in torchs_group
            }
            assert {setting: group[setting] for setting in expected} == expected, name
            by_hand.param_groups[0].update(expected)
            step(optimizer, params, [1.0, -1.0])
            step(by_hand, expected_params, [1.0, -1.0])
            torchs.step()
            for scheduler in (schedule, torchs_schedule):
                if isinstance(scheduler, schedules.ReduceLROnPlateau):
                    scheduler.step(1.0)  # pyright: ignore[reportUnknownMemberType]  # torch's is half typed
                else:
                    scheduler.step()
        assert_equal(params, expected_params)


def _torchs_own(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A torch optimizer with the same settings for schedulers to change."""
    defaults = optimizer.defaults
    if "betas" in defaults:
        return torch.optim.AdamW(pair(), lr=defaults["lr"], betas=defaults["betas"])
    return torch.optim.SGD(pair(), lr=defaults["lr"], momentum=defaults.get("momentum", 0.0))


def _has_momentum(optimizer: torch.optim.Optimizer) -> bool:
    defaults = optimizer.defaults
    return "betas" in defaults or bool(defaults.get("momentum"))
