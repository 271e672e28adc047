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
from typing import TYPE_CHECKING

import pytest

from finetune_common.testing.distributed import check_two_processes
from finetune_common.testing.optimizers.arithmetic import agrees_with_reference, foreach_equals_reference
from finetune_common.testing.optimizers.behaviour import (
    converges,
    evaluates_a_closure_once,
    has_groups,
    holds_no_gradient,
    is_untouched_by_a_skipped_step,
    leaves_what_has_no_gradient,
    maximizes,
    refuses_what_it_cannot_do,
    takes_a_tensor_learning_rate,
)
from finetune_common.testing.optimizers.case import Contract, Factory, OptimizerCase
from finetune_common.testing.optimizers.costly import (
    does_not_recompile,
    fused_equals_reference,
    works_in_a_compiled_step,
    works_in_accelerate,
    works_in_trainer,
)
from finetune_common.testing.optimizers.files import (
    begins_momentum_late,
    loads_older_states,
    loads_or_refuses_foreign_states,
    loads_what_a_hook_returns,
    survives_checkpoint_tools,
    survives_other_files,
)
from finetune_common.testing.optimizers.protocols import (
    checks_settings_at_the_next_step,
    has_torchs_registries,
    moves_what_begins_at_zero,
    skips_by_option,
    stays_finite,
    steps_odd_parameters,
    takes_few_calls,
)
from finetune_common.testing.optimizers.schedules import follows_schedulers
from finetune_common.testing.optimizers.state import resumes_exactly, state_survives

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet  # what pytest.param returns

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
    holds_no_gradient,
    refuses_what_it_cannot_do,
    converges,
    is_untouched_by_a_skipped_step,
    loads_what_a_hook_returns,
    loads_older_states,
    loads_or_refuses_foreign_states,
    survives_checkpoint_tools,
    survives_other_files,
    begins_momentum_late,
    follows_schedulers,
    has_torchs_registries,
    skips_by_option,
    steps_odd_parameters,
    stays_finite,
    moves_what_begins_at_zero,
    checks_settings_at_the_next_step,
    takes_few_calls,
)
"""Contracts for every case."""

COSTLY_CONTRACTS = (
    fused_equals_reference,
    does_not_recompile,
    works_in_a_compiled_step,
    works_in_accelerate,
    works_in_trainer,
)
"""Additional contracts for the cases marked costly."""


def check_optimizer(
    cls: Factory, cases: Sequence[OptimizerCase], contracts: Sequence[Contract] = CONTRACTS
) -> list[ParameterSet]:
    """Return the checks of an optimizer, for `pytest.mark.parametrize`; each is called without arguments.

    Of torch's own suite (`test/test_optim.py`) they repeat, for every case:

    - `forloop_goes_right_direction`, `param_groups_lr`, `tensor_lr`, `set_default_dtype…`: `converges`,
      `has_groups`, `takes_a_tensor_learning_rate`; `can_be_printed`, `duplicate_params_…`, the tests of
      step and state hooks: `has_torchs_registries`;
    - `foreach_matches_forloop`, `fused_matches_forloop`, also for gaps in memory and no elements:
      `foreach_equals_reference`, `fused_equals_reference`, `steps_odd_parameters`;
    - `step_is_noop_when_params_have_no_grad`, `mixed_device_dtype`, `complex` (refused), `errors`:
      `leaves_what_has_no_gradient`, `agrees_with_reference`, `refuses_what_it_cannot_do`,
      `checks_settings_at_the_next_step`;
    - `save_load_equality_with_weights_only`, `deepcopy_…`, `load_nontensor_step`,
      `can_load_older_state_dict`, `load_state_dict_pre_hook…`, `state_dict_with_…`: `state_survives`,
      `resumes_exactly`, `loads_older_states`, `loads_what_a_hook_returns`;
    - of `test_lrscheduler.py` every scheduler: `follows_schedulers`; of `distributed/checkpoint` and
      `fsdp`: `survives_checkpoint_tools`, `survives_other_files`, and what runs on two processes.

    Not repeated, since it does not apply: `capturable…` and `differentiable…` (not offered: a step reads
    nothing from a GPU, but counts steps on the CPU, so that it is no CUDA graph), sparse gradients
    (refused), `fused_does_not_step_if_foundinf` (`GradScaler` unscales before the step and skips it whole;
    see `is_untouched_by_a_skipped_step` and `skip_nonfinite`), `…large_tensor` and `peak_memory_foreach`
    (GPUs). `step_is_noop_for_zero_grads` holds for no optimizer with momentum or decay.

    Beyond torch's: an independent reference, states of other optimizers, momentum switched on late, zeros
    that move, squares that overflow, skipping by option, a training step under
    `torch.compile`, FSDP2, ZeRO, and the number of calls.

    Args:
        cls: The optimizer's class, or a function with its signature: (params, **settings).
        cases: The table.
        contracts: Contracts for every case. An optimizer of another base class that runs in only one way
            leaves out `foreach_equals_reference`.

    Examples:
        >>> import torch
        >>> from finetune_common.testing import check_optimizer
        >>> check_optimizer(torch.optim.SGD, [])
        []
    """
    costly = [case for case in cases if case.costly]
    checks = [(case, contract) for contract in contracts for case in cases]
    checks += [(case, contract) for contract in COSTLY_CONTRACTS for case in costly]
    name = cls.__name__
    params = [
        pytest.param(partial(f, cls, case), id=f"{name}-{case.name}-{f.__name__}") for case, f in checks
    ]
    if costly:
        settings, stored = (
            [dict(case.settings) for case in cases if case.costly == wanted] for wanted in (True, False)
        )
        two = partial(check_two_processes, cls, settings, stored)
        params.append(pytest.param(two, id=f"{name}-{'+'.join(case.name for case in costly)}-two_processes"))
    return params
