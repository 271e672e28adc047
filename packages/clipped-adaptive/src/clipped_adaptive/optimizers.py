"""Adam, AdaGrad and SGD with gradient clipping inside the step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from clipped_adaptive import rules
from clipped_adaptive.clipping import (
    ClipReport,
    Level,
    RunningQuantile,
    check_clipping,
    coefficients,
    norms_by_unit,
)
from finetune_common.errors import ConfigurationError, check_choice, check_number
from finetune_common.optim import Batch, ElementwiseOptimizer, arithmetic_dtype, whole_norms

__all__ = ["ClippedAdaGrad", "ClippedAdam", "ClippedSGD"]


class _ClippedOptimizer(ElementwiseOptimizer):
    """What the three share: clipping, which is one setting for the whole optimizer, and its report."""

    whole: ClassVar[tuple[str, ...]] = ("clip", "max_norm", "norm")
    norm = False
    _level: float = torch.inf
    _clipped: tuple[Tensor, Tensor] | None = None

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        clip: str,
        max_norm: Level,
        norm: bool = False,
        **running: Any,
    ):
        check_clipping(clip, max_norm)
        check_choice("norm", norm, (True, False))
        self.clip, self.max_norm, self.norm = clip, max_norm, norm
        super().__init__(params, defaults, **running)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        check_number("weight_decay", group["weight_decay"], at_least=0)
        for name in self.whole:
            if name in group:
                raise ConfigurationError(
                    f"{name}={group[name]!r} in a parameter group: it is one for the whole optimizer, pass "
                    "it to the constructor"
                )

    def prepare(self, batches: list[Batch]) -> list[dict[str, Tensor]]:
        """Compute the clipping coefficients and, with one scalar second moment, the denominator."""
        self._clipped = None
        if batches and (self.norm or callable(self.max_norm)):
            self.shared["steps"] = self._steps_before(batches) + 1
        by_norm = self.clip not in ("none", "elementwise")
        if batches and self.clip == "elementwise":
            self._level = self._level_now()
        if not batches or not (by_norm or self.norm):
            return [{} for _ in batches]
        device = batches[0].rows[0][0].device
        norms = torch.cat([whole_norms(batch.grads).to(device) for batch in batches])
        numbers: dict[str, Tensor] = {}
        if by_norm:
            numbers["coefficient"] = self._coefficients(norms, batches)
            self._clipped = norms, numbers["coefficient"]
        if self.norm:
            after = norms * numbers["coefficient"] if by_norm else self._norms_at_level(norms, batches)
            denominator = self._denominator(after.square().sum())
            numbers["denominator"] = denominator.expand(len(norms))
        return _by_batch(numbers, batches)

    def _steps_before(self, batches: Sequence[Batch]) -> int:
        """Return the optimizer's steps; a parameter's own are fewer where it has no gradient at times."""
        return self.shared.get("steps", max(batch.step for batch in batches) - 1)

    def _coefficients(self, norms: Tensor, batches: Sequence[Batch]) -> Tensor:
        labels = [label for batch in batches for label in self._labels(batch)]
        units = norms_by_unit(norms, labels)
        if not isinstance(self.max_norm, RunningQuantile):
            return coefficients(units, labels, self._level_now())
        positions = {label: position for position, label in enumerate(self._all_labels())}
        own = [positions[label] for label in dict.fromkeys(labels)]
        return coefficients(units, labels, self.max_norm.level(units, own, len(positions), self.shared))

    def _norms_at_level(self, norms: Tensor, batches: Sequence[Batch]) -> Tensor:
        if self.clip == "none":
            return norms
        grads = (grad for batch in batches for grad in batch.grads)
        return torch.cat([_norm_at(self._level, grad).to(norms.device) for grad in grads])

    def _labels(self, batch: Batch) -> Sequence[Hashable]:
        if self.clip == "local":
            return batch.indices
        label = "whole" if self.clip == "global" else self._layer(batch.group)
        return [label] * len(batch.params)

    def _layer(self, group: Mapping[str, Any]) -> Hashable:
        position = next(i for i, other in enumerate(self.param_groups) if other is group)
        return group.get("layer", position)

    def _all_labels(self) -> list[Hashable]:
        if self.clip == "global":
            return ["whole"]
        if self.clip == "layer":
            return list(dict.fromkeys(self._layer(group) for group in self.param_groups))
        return list(range(sum(len(group["params"]) for group in self.param_groups)))

    def _level_now(self) -> float:
        if not callable(self.max_norm):
            return float(self.max_norm)  # type: ignore[arg-type]
        step = self.shared["steps"]
        level = float(self.max_norm(step))
        check_number(f"max_norm at step {step}", level, above=0)
        return level

    def _denominator(self, squared_norm: Tensor) -> Tensor:
        raise NotImplementedError

    def clip_report(self) -> ClipReport:
        """Return what clipping did at the last step; this call waits for the device, `step` does not.

        For `clip="none"` and `"elementwise"`, where a step needs no norms, they are taken from the gradients
        as they are now: call it before `zero_grad`.

        Raises:
            ConfigurationError: No step was taken, or the gradients are gone.

        Examples:
            >>> w = torch.nn.Parameter(torch.zeros(2))
            >>> w.grad = torch.tensor([3.0, 4.0])
            >>> optimizer = ClippedSGD([w], lr=0.1, clip="global", max_norm=1.0)
            >>> optimizer.step()
            >>> optimizer.clip_report()
            ClipReport(share=1.0, norm_before=5.0, norm_after=1.0)
        """
        if self._clipped is not None:
            norms, factors = self._clipped
            share, before, after = (factors < 1).to(norms.dtype).mean(), norms, norms * factors
        else:
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            if not grads or not self.state:
                raise ConfigurationError(
                    "there is no clipped gradient to report: call clip_report() after step() and before "
                    "zero_grad()"
                )
            cut = sum((grad.abs() > self._level).sum().item() for grad in grads)
            share = torch.tensor(cut / sum(grad.numel() for grad in grads))
            before = torch.cat([whole_norms([grad]).cpu() for grad in grads])
            after = torch.cat([_norm_at(self._level, grad).cpu() for grad in grads])
        total = torch.linalg.vector_norm
        return ClipReport(share.item(), total(before).item(), total(after).item())

    def _element_level(self) -> dict[str, float]:
        return {"level": self._level} if self.clip == "elementwise" else {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.whole}}


def _norm_at(level: float, grad: Tensor) -> Tensor:
    return whole_norms([grad.clamp(-level, level)])


def _by_batch(numbers: Mapping[str, Tensor], batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    sizes = [len(batch.params) for batch in batches]
    parts = {name: values.split(sizes) for name, values in numbers.items()}
    return [
        {
            name: part[i].to(batch.rows[0][0].device, arithmetic_dtype(batch.params[0].dtype))
            for name, part in parts.items()
        }
        for i, batch in enumerate(batches)
    ]


class _ClippedAdaptive(_ClippedOptimizer):
    """What the two with a second moment share: delay, reweighting, the scalar form."""

    initial: ClassVar[str]
    agreeing: ClassVar[tuple[str, ...]]

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        super().check_group(group)
        check_number("eps", group["eps"], at_least=0)
        check_number("eta", group["eta"], above=0)
        check_number(self.initial, group[self.initial], at_least=0)
        check_choice("delay", group["delay"], (True, False))
        if group["delay"] and group[self.initial] == 0:
            raise ConfigurationError(
                f"delay=True with {self.initial}=0 divides the first step by nothing: give "
                f"{self.initial}=1e-5"
            )
        if self.norm and self.param_groups:
            first = self.param_groups[0]
            for name in self.agreeing:
                if group[name] != first[name]:
                    raise ConfigurationError(
                        f"{name}={group[name]!r} in one group and {first[name]!r} in another: with norm=True "
                        "all groups share one second moment, give them the same"
                    )

    def _second_moment(self, like: Tensor) -> Tensor:
        group = self.param_groups[0]
        old = self.shared.get("second_moment")
        return like.new_full((), group[self.initial]) if old is None else old.to(like.device, like.dtype)


class ClippedAdam(_ClippedAdaptive):
    """Adam on clipped gradients, with decoupled weight decay.

        ĝ = clip(g),   m = β₁ m + (1-β₁) ĝ,   v_t = β₂ v_{t-1} + (1-β₂) η ĝ²
        θ = (1 - lr λ) θ - lr · m̂ / (√v̂ + ε),    v̂ = v_t, or v_{t-1} with delay

    Bias correction divides m by 1-β₁ᵗ, and v by 1-β₂ᵗ where there is neither delay nor an initial value.
    With `norm` v is one number for the whole optimizer, fed with ‖ĝ‖² of all parameters together, and kept
    in `state_dict()["state"]["shared"]`. The gradients in `.grad` stay as they are. The state is `exp_avg`
    and (without `norm`) `exp_avg_sq`.

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        betas: β₁ and β₂ in [0, 1).
        eps: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule.
        clip: What shares a norm: "none", "global" (all parameters of the optimizer), "layer" (a group, or
            all groups with the same value of the key `layer`; see `layer_groups`), "local" (each tensor), or
            "elementwise" (values are cut to [-max_norm, max_norm]). One for the whole optimizer.
        max_norm: The level > 0: a number, a function of the step (from 1), or a `RunningQuantile`.
        delay: Divide by the second moment of the step before; needs an initial value.
        eta: η > 0, weight of new squares in the second moment.
        initial_second_moment: v_0 ≥ 0, of the squared quantity.
        norm: One second moment for the whole optimizer; all groups must agree on β₂, η, ε, delay, initial
            value and bias correction.
        bias_correction: See above.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so where it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.

    Raises:
        ConfigurationError: A setting out of range or unknown, or delay without an initial value.

    Examples:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = ClippedAdam([w], lr=0.1, max_norm=1.0, delay=True, initial_second_moment=1)
        >>> (1000 * w).sum().backward()
        >>> optimizer.step()  # m̂ = ĝ = (0.7071, 0.7071), v_0 = 1
        >>> w.data
        tensor([ 0.9293, -2.0707])

    Source: Chezhegov et al., "Clipping Improves Adam-Norm and AdaGrad-Norm when the Noise Is Heavy-Tailed"
    (ICML 2025, arXiv 2406.04443), Algorithm 2; coordinate-wise as in its experiments. Differs from the
    released code in that delay concerns the second moment only.
    """

    initial = "initial_second_moment"
    agreeing = ("betas", "eta", "eps", "delay", "initial_second_moment", "bias_correction")

    def __init__(
        self,
        params: Any,
        lr: Any,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        clip: str = "local",
        max_norm: Level = 1.0,
        delay: bool = False,
        eta: float = 1.0,
        initial_second_moment: float = 0.0,
        norm: bool = False,
        bias_correction: bool = True,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        stochastic_rounding: bool = False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas),
                "eps": eps,
                "weight_decay": weight_decay,
                "delay": delay,
                "eta": eta,
                "initial_second_moment": initial_second_moment,
                "bias_correction": bias_correction,
            },
            clip=clip,
            max_norm=max_norm,
            norm=norm,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            stochastic_rounding=stochastic_rounding,
        )

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        for name, beta in zip(("beta1", "beta2"), group["betas"], strict=True):
            check_number(name, beta, at_least=0, below=1)
        check_choice("bias_correction", group["bias_correction"], (True, False))
        super().check_group(group)

    def initial_state(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """m and v."""
        second = {} if self.norm else {"exp_avg_sq": group["initial_second_moment"]}
        return {"exp_avg": 0.0, **second}

    def rule(self, group: Mapping[str, Any]) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        """`rules.adam` or `rules.adam_norm`."""
        return (rules.adam_norm, {}) if self.norm else (rules.adam, {"delay": group["delay"]})

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """The numbers of the rule."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        numbers = {
            "step_size": lr / (1 - beta1**step) if group["bias_correction"] else lr,
            "beta1_complement": 1 - beta1,
            "keep": 1 - lr * group["weight_decay"],
            **self._element_level(),
        }
        if not self.norm:
            numbers |= {
                "beta2": beta2,
                "weight": (1 - beta2) * group["eta"],
                "root": self._root(group, step),
                "eps": group["eps"],
            }
        return numbers

    def _root(self, group: Mapping[str, Any], step: int) -> float:
        corrected = group["bias_correction"] and not group["delay"] and group["initial_second_moment"] == 0
        return (1 - group["betas"][1] ** step) ** 0.5 if corrected else 1.0

    def _denominator(self, squared_norm: Tensor) -> Tensor:
        group = self.param_groups[0]
        beta2, old = group["betas"][1], self._second_moment(squared_norm)
        new = old * beta2 + (1 - beta2) * group["eta"] * squared_norm
        self.shared["second_moment"] = new
        root = self._root(group, self.shared["steps"])
        return (old if group["delay"] else new).sqrt() / root + group["eps"]


class ClippedAdaGrad(_ClippedAdaptive):
    """AdaGrad on clipped gradients, with decoupled weight decay.

        ĝ = clip(g),   b_t = b_{t-1} + η ĝ²
        θ = (1 - lr λ) θ - lr · ĝ / (√b + ε),    b = b_t, or b_{t-1} with delay

    With `norm` b is one number for the whole optimizer, fed with ‖ĝ‖² of all parameters together, and kept
    in `state_dict()["state"]["shared"]`. The gradients in `.grad` stay as they are. The state is (without
    `norm`) `accumulator`.

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        eps: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule.
        clip: What shares a norm; see `ClippedAdam`.
        max_norm: The level > 0: a number, a function of the step (from 1), or a `RunningQuantile`.
        delay: Divide by the accumulator of the step before; needs an initial value.
        eta: η > 0, weight of new squares in the accumulator.
        initial_accumulator: b_0 ≥ 0, of the squared quantity (the square of the paper's b_0).
        norm: One accumulator for the whole optimizer; all groups must agree on η, ε, delay, initial value.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so where it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.

    Raises:
        ConfigurationError: A setting out of range or unknown, or delay without an initial value.

    Examples:
        >>> x = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = ClippedAdaGrad([x], lr=0.5, max_norm=0.5, norm=True, initial_accumulator=9)
        >>> (x**2 / 2).backward()
        >>> optimizer.step()  # 2 - 0.5·0.5/√(9 + 0.25)
        >>> round(x.item(), 4)
        1.9178

    Source: Chezhegov et al., "Clipping Improves Adam-Norm and AdaGrad-Norm when the Noise Is Heavy-Tailed"
    (ICML 2025, arXiv 2406.04443), Algorithm 2; η ≠ 1 is Clip-RAdaGradD of its first version. Differs from
    the released code in that the delayed form steps along the current gradient.
    """

    initial = "initial_accumulator"
    agreeing = ("eta", "eps", "delay", "initial_accumulator")

    def __init__(
        self,
        params: Any,
        lr: Any,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        *,
        clip: str = "local",
        max_norm: Level = 1.0,
        delay: bool = False,
        eta: float = 1.0,
        initial_accumulator: float = 0.0,
        norm: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        stochastic_rounding: bool = False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "eps": eps,
                "weight_decay": weight_decay,
                "delay": delay,
                "eta": eta,
                "initial_accumulator": initial_accumulator,
            },
            clip=clip,
            max_norm=max_norm,
            norm=norm,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            stochastic_rounding=stochastic_rounding,
        )

    def initial_state(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """b."""
        return {} if self.norm else {"accumulator": group["initial_accumulator"]}

    def rule(self, group: Mapping[str, Any]) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        """`rules.adagrad` or `rules.adagrad_norm`."""
        return (rules.adagrad_norm, {}) if self.norm else (rules.adagrad, {"delay": group["delay"]})

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """The numbers of the rule."""
        lr = float(group["lr"])
        second = {} if self.norm else {"weight": group["eta"], "eps": group["eps"]}
        keep = 1 - lr * group["weight_decay"]
        return {"step_size": lr, "keep": keep, **second, **self._element_level()}

    def _denominator(self, squared_norm: Tensor) -> Tensor:
        group, old = self.param_groups[0], self._second_moment(squared_norm)
        new = old + group["eta"] * squared_norm
        self.shared["second_moment"] = new
        return (old if group["delay"] else new).sqrt() + group["eps"]


class ClippedSGD(_ClippedOptimizer):
    """SGD on clipped gradients, with decoupled weight decay.

        ĝ = clip(g),   u = μ u + ĝ
        θ = (1 - lr λ) θ - lr · u      (Nesterov: ĝ + μ u in place of u)

    The gradients in `.grad` stay as they are. The state is `momentum_buffer` (with momentum).

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        momentum: μ in [0, 1).
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule.
        nesterov: Look ahead; needs momentum.
        clip: What shares a norm; see `ClippedAdam`.
        max_norm: The level > 0: a number, a function of the step (from 1), or a `RunningQuantile`.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so where it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.

    Raises:
        ConfigurationError: A setting out of range or unknown, or `nesterov` without momentum.

    Examples:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = ClippedSGD([w], lr=0.1, clip="elementwise", max_norm=0.5)
        >>> (100 * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 4)
        0.95
    """

    whole = ("clip", "max_norm")

    def __init__(
        self,
        params: Any,
        lr: Any,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        clip: str = "local",
        max_norm: Level = 1.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        stochastic_rounding: bool = False,
    ):
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov},
            clip=clip,
            max_norm=max_norm,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            stochastic_rounding=stochastic_rounding,
        )

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        check_number("momentum", group["momentum"], at_least=0, below=1)
        if group["nesterov"] and group["momentum"] == 0:
            raise ConfigurationError("nesterov=True with momentum=0.0 does nothing: give a momentum above 0")
        super().check_group(group)

    def initial_state(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """The velocity u."""
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def rule(self, group: Mapping[str, Any]) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        """`rules.sgd`."""
        return rules.sgd, {"nesterov": group["nesterov"]}

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """The numbers of `rules.sgd`."""
        lr = float(group["lr"])
        keep = 1 - lr * group["weight_decay"]
        return {"step_size": -lr, "momentum": group["momentum"], "keep": keep, **self._element_level()}
