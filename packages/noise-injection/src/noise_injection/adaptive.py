"""AGNI: gradient noise as large as the gradient's own variance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from finetune_common.aliases import StateDict
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_choice, check_number
from finetune_common.optim.settings import check_switch
from noise_injection.attachment import GradientNoise, Plan, Row, reach
from noise_injection.microbatch import MicroBatchVariance
from noise_injection.moments import EmaVariance, RunningVariance
from noise_injection.variances import VARIANCES

__all__ = ["AdaptiveGradientNoise"]


@explain_arguments
class AdaptiveGradientNoise(GradientNoise):
    """Adaptive gradient noise injection (AGNI), on any torch optimizer.

    G ← G + ε·sqrt(η·V)·‖G‖₂,  ε ~ N(0, 1) for every element

    G is a parameter tensor's gradient as the optimizer's step sees it (after accumulation, averaging over
    processes, unscaling and clipping), ‖G‖₂ the norm of the whole tensor, V the variance of each element:

    - "microbatch": the unbiased variance of u_i = N·c_i, where micro-batch i of the step's N adds c_i to the
      gradient. With losses divided by N the u_i are the micro-batch gradients; their mean is G. If G was
      rescaled by one factor after backward, V is multiplied by its square. Under DDP the micro-batches of
      all ranks count.
    - "running": the unbiased variance of G over all steps so far, including this one.
    - "ema": max(0, v̂ - m̂²), with the bias-corrected moving averages of G and G² from before the step. They
      are Adam's if the optimizer keeps them for a parameter (and contain the noise of earlier steps), else
      averages of its gradient before noise with decay 0.9 and 0.999.

    A gradient tensor with an element that is not finite gets no noise. The noise has its own random
    generator: with η = 0 a run equals the run without noise bit for bit.

    Args:
        optimizer: Any torch optimizer; the noise attaches itself to it. Move the model to its device first.
        eta: Scale η of the variance, at least 0. With `scale_by_norm` its unit is 1/[gradient]²; without, it
            is a pure number.
        variance: Where V comes from: "microbatch", "running" or "ema".
        scale_by_norm: Whether ‖G‖₂ is a factor of the noise.
        seed: Seed of the noise, 0 or a positive integer; the same on all replicas.
        process_group: The processes over which gradients are averaged, for "microbatch"; None for all. If
            training is distributed in another way, a group of this process alone.

    Attributes:
        eta: η; may be changed between steps.
        skipped: Steps without noise because they had a single micro-batch.

    Raises:
        ConfigurationError: A setting is out of its range; at a step: the first one has a single micro-batch
            ("microbatch"), or a gradient is sparse.

    Examples:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        >>> noise = AdaptiveGradientNoise(optimizer, eta=0.01, variance="microbatch", seed=0)
        >>> for batch in torch.ones(2, 3), torch.zeros(2, 3):
        ...     (model(batch).sum() / 2).backward()
        >>> optimizer.step()
        >>> noise.remove()

    Source:
        The AGNI project (S. D. Muhsin). Its released code takes the variance of a single gradient, which is
        zero; this is the method as it is described there.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        eta: float = 0.01,
        variance: str = "microbatch",
        scale_by_norm: bool = True,
        seed: int = 0,
        *,
        process_group: ProcessGroup | None = None,
    ) -> None:
        check_number("eta", eta, at_least=0, below=float("inf"))
        check_choice("variance", variance, VARIANCES)
        check_switch("scale_by_norm", scale_by_norm)
        super().__init__(optimizer, seed)
        self.eta, self.variance, self.scale_by_norm = eta, variance, scale_by_norm
        if variance == "microbatch":
            self._source = MicroBatchVariance(self.parameters, process_group, checks=self.order == 0)
        elif variance == "running":
            self._source = RunningVariance(self.optimizer)
        else:
            self._source = EmaVariance(self.optimizer)
            self._handles.append(self.optimizer.register_step_post_hook(self._after_step))

    @property
    def skipped(self) -> int:
        """Steps without noise because they had a single micro-batch."""
        return getattr(self._source, "skipped", 0)

    def remove(self) -> None:
        """Detach: the optimizer behaves as before. Removing twice does no harm."""
        super().remove()
        self._source.remove()

    def plans(self, rows: list[Row]) -> list[Plan]:
        """Return a plan for each row whose variance is known."""
        return self._source.plans(rows)

    def numbers(self, plans: list[Plan], sums: Tensor, unit: Tensor) -> Tensor:
        """Return the kernel's numbers for each plan."""
        return self._source.numbers(plans, sums, self.eta**0.5 * reach(sums, unit, self.scale_by_norm), unit)

    def after_injection(self) -> None:
        """End the window of micro-batches."""
        self._source.after_injection()

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        """Begin our averages of parameters whose first step left none in the optimizer."""
        if isinstance(self._source, EmaVariance) and self._source.waiting:
            no_keys = torch.zeros(len(list(self.parameters())), 3, dtype=torch.int32)
            plans = self._source.first_plans(self._rows())
            self._run(plans, no_keys, None)  # an optimizer that unscales has done so in place

    def state_dict(self) -> StateDict:
        """Return what a resumed run needs to draw the same noise: numbers and tensors only."""
        return {**super().state_dict(), "variance": self.variance, **self._source.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from a state; the statistics keep their dtype.

        Raises:
            ConfigurationError: The state was made with another `variance`.
        """
        if state.get("variance") != self.variance:
            raise ConfigurationError(
                f"the state has variance={state.get('variance')!r}, but this noise has {self.variance!r}: "
                "resume with the setting that the run began with"
            )
        super().load_state_dict(state)
        self._source.load_state_dict(state, self.steps)
