"""An optimizer of its own."""

import torch


class SignMomentum(torch.optim.Optimizer):
    """m = decay m + (1 - decay) g;  theta = theta - lr (sign(m) + weight_decay theta)."""

    def __init__(self, params, lr: float, decay: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    m = state.setdefault("m", torch.zeros_like(parameter))
                    m.lerp_(parameter.grad, 1 - group["decay"])
                    parameter.sub_(group["lr"] * (m.sign() + group["weight_decay"] * parameter))
