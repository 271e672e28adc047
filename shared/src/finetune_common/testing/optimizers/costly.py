"""Compilation, accelerate and the Trainer."""

from __future__ import annotations

# torch's seeding and compile have no types:
# pyright: reportUnknownMemberType=false
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import utils as dynamo  # its counters have no public name

from finetune_common.testing.optimizers.case import Factory, OptimizerCase
from finetune_common.testing.optimizers.training import (
    TOLERANCE,
    assert_close,
    assert_equal,
    pair,
    parameters,
    tensors,
    torch_may_deprecate_itself,
    train,
    trained,
)

__all__ = [
    "does_not_recompile",
    "fused_equals_reference",
    "works_in_a_compiled_step",
    "works_in_accelerate",
    "works_in_trainer",
]


def fused_equals_reference(cls: Factory, case: OptimizerCase) -> None:
    """Compiled code agrees with the reference, in float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        expected = trained(cls, 10, dtype, fused=False, foreach=False, **case.settings)
        with torch_may_deprecate_itself():
            actual = trained(cls, 10, dtype, fused=True, **case.settings)
        assert_close(actual, expected, TOLERANCE[dtype])


def does_not_recompile(cls: Factory, case: OptimizerCase) -> None:
    """A hundred steps of a schedule reuse the code compiled in the first two."""
    params = parameters()
    optimizer = cls(params, fused=True, **case.settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    graphs: list[int] = []
    for number in range(100):
        with torch_may_deprecate_itself():
            train(optimizer, params, [number])
        schedule.step()
        graphs.append(dynamo.counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[1] > 0


def works_in_a_compiled_step(cls: Factory, case: OptimizerCase) -> None:
    """torch.compile around a step changes nothing, and does not recompile from step to step."""
    params, expected = pair(), pair()
    optimizer, plain = cls(params, **case.settings), cls(expected, **case.settings)

    def update(loss: Tensor) -> Tensor:
        doubled = loss * 2
        optimizer.step()
        return doubled + 1

    compiled = torch.compile(update, backend="eager")  # only tracing matters here, not speed
    graphs: list[int] = []
    for number in range(12):
        for each in (params, expected):
            for param, size in zip(each, (1.0 + number, -2.0), strict=True):
                param.grad = torch.full_like(param, size)
        with torch_may_deprecate_itself():
            assert compiled(torch.tensor(float(number))) == 2 * number + 1
        plain.step()
        graphs.append(dynamo.counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[2]
    assert_equal(params, expected)


def works_in_accelerate(cls: Factory, case: OptimizerCase) -> None:
    """`prepare` keeps the state and its dtype, and does not change training."""
    accelerate = pytest.importorskip("accelerate")
    expected = trained(cls, 6, torch.bfloat16, **case.settings)
    params = parameters(torch.bfloat16)
    optimizer = cls(params, **case.settings)
    train(optimizer, params, range(3))
    prepared = accelerate.Accelerator(cpu=True).prepare(optimizer)
    dtypes = {value.dtype for _, _, value in tensors(optimizer.state_dict())}
    assert dtypes == {torch.float32}
    train(prepared, params, range(3, 6))
    assert_equal(params, expected)


def works_in_trainer(cls: Factory, case: OptimizerCase) -> None:
    """transformers' Trainer trains with it (`optimizers=`) as a plain loop does."""
    transformers = pytest.importorskip("transformers")

    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(3, 1)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": ((self.linear(x)[:, 0] - labels) ** 2).mean()}

    generator = torch.Generator().manual_seed(0)
    rows = [
        {"x": torch.randn(3, generator=generator), "labels": torch.randn((), generator=generator)}
        for _ in range(4)
    ]
    by_trainer, by_loop = Regression(), Regression()
    arguments = transformers.TrainingArguments(
        output_dir="unused",
        max_steps=6,
        per_device_train_batch_size=4,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
    )
    optimizer = cls(by_trainer.parameters(), **case.settings)
    trainer = transformers.Trainer(by_trainer, arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
    optimizer = cls(by_loop.parameters(), **case.settings)
    x, labels = torch.stack([row["x"] for row in rows]), torch.stack([row["labels"] for row in rows])
    for _ in range(6):
        optimizer.zero_grad()
        by_loop(x, labels)["loss"].backward()
        optimizer.step()
    assert_close(list(by_trainer.parameters()), list(by_loop.parameters()), 1e-4)
