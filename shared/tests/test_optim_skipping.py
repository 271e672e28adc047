"""Steps with gradients that are not finite: taken as they are, or skipped by option and counted."""

import pytest
import torch
from torch import nn

from finetune_common.errors import ConfigurationError
from finetune_common.optim import ElementwiseOptimizer


def descent(param, grad, *, lr):
    return (param - grad * lr,)


class Descent(ElementwiseOptimizer):
    def rule(self, group):
        return descent, {}

    def scalars(self, group, step):
        return {"lr": float(group["lr"])}


def stepped(options, grads):
    params = [nn.Parameter(torch.ones(2)) for _ in grads]
    groups = [{"params": [p], "skip_nonfinite": o} for p, o in zip(params, options, strict=True)]
    optimizer = Descent(groups, {"lr": 1.0})
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.tensor([grad, 0.5])
    optimizer.step()
    moved = [not torch.equal(param, torch.ones(2)) for param in params]
    skipped = [group["skipped"] for group in optimizer.param_groups]
    steps = [int(optimizer.state[param]["step"]) for param in params]
    return moved, skipped, steps


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("options", "grads", "moved"),
    [
        ((None, None), (INF, 0.5), [True, True]),
        (("group", "group"), (INF, 0.5), [False, True]),
        (("group", "group"), (0.5, NAN), [True, False]),
        (("step", "step"), (INF, 0.5), [False, False]),
        (("group", "step"), (INF, 0.5), [False, True]),
        (("group", "step"), (0.5, INF), [False, False]),
        ((None, "group"), (NAN, 0.5), [True, True]),
        (("group", "group"), (3e38, -3e38), [True, True]),
    ],
)
def test_what_is_skipped_stands_still_counts_no_step_and_is_counted(options, grads, moved):
    assert stepped(options, grads) == (moved, [int(not m) for m in moved], [int(m) for m in moved])


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigurationError, match="skip_nonfinite='all' is unknown"):
        Descent([nn.Parameter(torch.ones(2))], {"lr": 1.0}, skip_nonfinite="all")
