"""Methods that note what a run tells them: `test_lifecycle` installs them, one for every slot."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

HEARD: list[tuple[Any, ...]] = []


class Told:
    """Hears of every moment of a step, draws at random each time, and counts in its state."""

    def __init__(self, slot: str) -> None:
        self.slot, self.count = slot, 0

    def before_forward(self, step: int) -> None:
        HEARD.append((self.slot, "before_forward", step))

    def after_backward(self, step: int, loss_fn: Any) -> None:
        torch.rand(3)
        HEARD.append((self.slot, "after_backward", step, float(loss_fn().detach())))

    def on_step(self, step: int) -> dict[str, Any]:
        self.count += 1
        HEARD.append((self.slot, "on_step", step))
        return {f"{self.slot}.count": self.count}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


@dataclass(frozen=True)
class Options:
    """Arithmetic on gradients.

    Args:
        factor: What a gradient is multiplied by.
        shift: What is added to it then.
    """

    factor: float = 1.0
    shift: float = 0.0


class Method:
    """Told of every step."""

    name = "told"
    Options = Options

    def __init__(self, options: Options) -> None:
        self.options = options


class Adaptation(Told, Method):
    """Every parameter trains."""

    def __init__(self, options: Options) -> None:
        super().__init__("adaptation")

    def load_kwargs(self) -> dict[str, Any]:
        return {}

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        return model


class Activation(Told, Method):
    """Saved tensors are left alone."""

    def __init__(self, options: Options) -> None:
        super().__init__("activation")

    def around_forward(self, model: torch.nn.Module) -> Any:
        HEARD.append(("activation", "around_forward"))
        return nullcontext()

    def stats(self) -> dict[str, Any]:
        return {}


class Gradient(Method):
    """Gradients are multiplied and shifted."""

    def attach(self, optimizer: torch.optim.Optimizer, accumulate: int) -> Told:
        def act(*_: Any) -> None:
            HEARD.append(("gradient", "acts"))
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad.mul_(self.options.factor).add_(self.options.shift)

        optimizer.register_step_pre_hook(act)
        return Told("gradient")


class Descent(Told, torch.optim.SGD):
    """Plain descent that is told of every step."""

    def __init__(self, groups: Any, lr: float) -> None:
        torch.optim.SGD.__init__(self, groups, lr=lr)
        self.slot, self.count = "optimizer", 0
        self.register_step_post_hook(lambda *_: HEARD.append(("optimizer", "step")))

    def state_dict(self) -> dict[str, Any]:
        return torch.optim.SGD.state_dict(self) | Told.state_dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.optim.SGD.load_state_dict(self, state)
        Told.load_state_dict(self, state)


class Optimizer(Method):
    """Plain descent."""

    def build(self, model: torch.nn.Module, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return Descent(groups, lr=0.0)


class Watch(Told):
    """Looks at a gradient."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__("monitor")
        self.bias = dict(model.named_parameters())["classifier.bias"]

    def on_step(self, step: int) -> dict[str, Any]:
        return {**super().on_step(step), "gradient": self.bias.grad[0].item()}


class Monitor(Method):
    """Looks at a gradient."""

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Watch:
        return Watch(model)
