"""What happens at the optimizer's step."""

import torch


class _AtStep:
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._hook = optimizer.register_step_pre_hook(lambda *_: self._act(optimizer))

    def _act(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.change(parameter.grad)

    def remove(self) -> None:
        self._hook.remove()


class Noise(_AtStep):
    def __init__(self, optimizer: torch.optim.Optimizer, size: float, shift: float, seed: int) -> None:
        super().__init__(optimizer)
        self.size, self.shift = size, shift
        self.generator = torch.Generator().manual_seed(seed)

    def change(self, gradient: torch.Tensor) -> None:
        gradient += self.shift + self.size * torch.randn(gradient.shape, generator=self.generator)

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"])


class Scale(_AtStep):
    def __init__(self, optimizer: torch.optim.Optimizer, factor: float) -> None:
        super().__init__(optimizer)
        self.factor = factor

    def change(self, gradient: torch.Tensor) -> None:
        gradient *= self.factor


class Watch:
    def __init__(self, model: torch.nn.Module) -> None:
        self.bias = dict(model.named_parameters())["classifier.bias"]
        self.looks = 0

    def on_step(self, step: int) -> dict:
        self.looks += 1
        return {"toy.gradient": self.bias.grad[0].item(), "toy.looks": self.looks}

    def remove(self) -> None:
        pass

    def state_dict(self) -> dict:
        return {"looks": self.looks}

    def load_state_dict(self, state: dict) -> None:
        self.looks = state["looks"]
