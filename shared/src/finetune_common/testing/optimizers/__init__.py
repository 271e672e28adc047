"""The contracts of an element-wise optimizer, as a table of cases × a list of contracts.

    @pytest.mark.parametrize("check", check_optimizer(SageAdamW, CASES))
    def test_sage_adamw(check):
        check()

Every case meets every contract of `CONTRACTS`; the cases marked `costly` also those of `COSTLY_CONTRACTS`
(compilation, accelerate, Trainer), and all of them together one run on two processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from finetune_common.testing.distributed import check_two_processes
from finetune_common.testing.optimizers.arithmetic import agrees_with_reference, foreach_equals_reference
from finetune_common.testing.optimizers.behaviour import (
    converges,
    evaluates_a_closure_once,
    has_groups,
    is_untouched_by_a_skipped_step,
    leaves_what_has_no_gradient,
    maximizes,
    refuses_what_it_cannot_do,
    takes_a_tensor_learning_rate,
)
from finetune_common.testing.optimizers.case import Factory, OptimizerCase
from finetune_common.testing.optimizers.costly import (
    does_not_recompile,
    fused_equals_reference,
    works_in_accelerate,
    works_in_trainer,
)
from finetune_common.testing.optimizers.state import resumes_exactly, state_survives

__all__ = ["CONTRACTS", "COSTLY_CONTRACTS", "OptimizerCase", "check_optimizer"]

CONTRACTS = (
    agrees_with_reference,
    foreach_equals_reference,
    state_survives,
    resumes_exactly,
    takes_a_tensor_learning_rate,
    maximizes,
    leaves_what_has_no_gradient,
    evaluates_a_closure_once,
    has_groups,
    refuses_what_it_cannot_do,
    converges,
    is_untouched_by_a_skipped_step,
)
"""What every case meets."""

COSTLY_CONTRACTS = (fused_equals_reference, does_not_recompile, works_in_accelerate, works_in_trainer)
"""What the cases marked costly meet as well."""


def check_optimizer(cls: Factory, cases: Sequence[OptimizerCase]) -> list[Any]:
    """Return the checks of an optimizer, for `pytest.mark.parametrize`; each is called without arguments.

    Args:
        cls: The optimizer's class, or a function with its signature: (params, **settings).
        cases: The table.

    Examples:
        >>> import torch
        >>> from finetune_common.testing import check_optimizer
        >>> check_optimizer(torch.optim.SGD, [])
        []
    """
    costly = [case for case in cases if case.costly]
    checks = [(case, contract) for contract in CONTRACTS for case in cases]
    checks += [(case, contract) for contract in COSTLY_CONTRACTS for case in costly]
    name = cls.__name__
    params = [
        pytest.param(partial(f, cls, case), id=f"{name}-{case.name}-{f.__name__}") for case, f in checks
    ]
    if costly:
        settings = [dict(case.settings) for case in costly]
        two = partial(check_two_processes, cls, settings)
        params.append(pytest.param(two, id=f"{name}-{'+'.join(case.name for case in costly)}-two_processes"))
    return params
