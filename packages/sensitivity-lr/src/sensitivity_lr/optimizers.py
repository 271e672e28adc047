"""AdamW, Adamax and SGD with sensitivity-guided learning rates (SAGE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetune_common.errors import ConfigurationError, check_choice, check_number
from finetune_common.optim import ElementwiseOptimizer
from sensitivity_lr import rules

__all__ = ["FORMS", "SageAdamW", "SageAdamax", "SageSGD", "check_sage", "sage_scalars"]

FORMS = ("released", "paper")
SMALLEST_S = 1e-37
"""The small number has to be a normal float32."""


def check_sage(group: Mapping[str, Any], eps: float) -> None:
    """Refuse settings of a group that SAGE cannot use.

    Args:
        group: With `beta3`, `form`, `sensitivity_eps`.
        eps: The base optimizer's ε, from which s comes.

    Raises:
        ConfigurationError: Names the value and the legal interval.
    """
    check_number("beta3", group["beta3"], at_least=0, below=1)
    check_choice("form", group["form"], FORMS)
    s = _small_number(group, eps)
    if not s >= SMALLEST_S:
        raise ConfigurationError(
            f"sensitivity_eps={s!r} is out of range: give it a number of at least {SMALLEST_S}"
        )


def _small_number(group: Mapping[str, Any], eps: float) -> float:
    if group["sensitivity_eps"] is not None:
        return group["sensitivity_eps"]
    return eps**2 if group["form"] == "released" else 1e-12


def sage_scalars(
    group: Mapping[str, Any], eps: float, correct_from_step: int | None = None
) -> dict[str, float]:
    """Return the numbers of `rules.sage_factor`.

    Args:
        group: With `beta3`, `form`, `sensitivity_eps`.
        eps: The base optimizer's ε.
        correct_from_step: The step t, where the released form has the bias-corrected average.
    """
    beta3 = group["beta3"]
    corrected = correct_from_step is not None and group["form"] == "released"
    weight = (1 - beta3) / (1 - beta3**correct_from_step) if corrected else 1 - beta3
    return {"weight": weight, "remainder": 1 - weight, "s": _small_number(group, eps)}


def _branches(group: Mapping[str, Any]) -> dict[str, Any]:
    return {"form": group["form"]} if group["sage"] else {}


class _SageOptimizer(ElementwiseOptimizer):
    """What the three share: the settings of SAGE, `sage=False` groups, and the state."""

    base_state: Callable[[Mapping[str, Any]], dict[str, float]]

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        form: str,
        sensitivity_eps: float | None,
        **running: Any,
    ):
        settings = {"form": form, "sensitivity_eps": sensitivity_eps, "sage": True}
        super().__init__(params, {**defaults, **settings}, **running)

    def initial_state(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        return self.base_state(group) | ({"sensitivity": 0.0} if group["sage"] else {})

    def check_group(self, group: Mapping[str, Any]) -> None:
        check_number("weight_decay", group["weight_decay"], at_least=0)
        check_choice("sage", group["sage"], (True, False))
        if group["sage"]:
            check_sage(group, group.get("eps", 1e-6))


class _SageAdam(_SageOptimizer):
    """What the two relatives of Adam share: their settings."""

    def __init__(
        self,
        params: Any,
        lr: Any,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float = 0.75,
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        form: str = "released",
        sensitivity_eps: float | None = None,
        legacy: bool = False,
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
                "beta3": beta3,
                "eps": eps,
                "weight_decay": weight_decay,
                "legacy": legacy,
            },
            form=form,
            sensitivity_eps=sensitivity_eps,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            stochastic_rounding=stochastic_rounding,
        )

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        check_number("eps", group["eps"], at_least=0)
        for name, beta in zip(("beta1", "beta2"), group["betas"], strict=True):
            check_number(name, beta, at_least=0, below=1)
        super().check_group(group)


class SageAdamW(_SageAdam):
    """AdamW in which each coordinate's learning rate follows its sensitivity (SAGE).

        I = |θ g|,   Î = β₃ Î + (1-β₃) I
        released:  f = |I-Ĩ| / (Ĩ+s),      Ĩ = Î/(1-β₃ᵗ),  s = ε²
        paper:     f = (|I-Î|+s) / (Î+s),  s = 1e-12
        θ = (1 - lr λ) θ - f · lr · m̂ / (√v̂ + ε)

    A coordinate that matters little compared with how much its sensitivity varies learns faster. In the
    released form the first step only fills the averages: f = 0. The state is `exp_avg`, `exp_avg_sq` and
    `sensitivity` (Ĩ in the released form, Î in the paper's).

    Args:
        params: Parameters, (name, parameter) pairs, or groups. A group with `sage=False` gets plain AdamW, in
            the arithmetic of `torch.optim.AdamW`; see `sage_param_groups`.
        lr: Learning rate ≥ 0, a number or a one-element tensor; for SAGE usually 2-5 times AdamW's.
        betas: β₁ and β₂ in [0, 1).
        beta3: β₃ in [0, 1), decay of the average sensitivity; useful values are 0.6-0.9.
        eps: ε ≥ 0, added after bias correction.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule, not scaled by f.
        form: "released" or "paper".
        sensitivity_eps: s; None takes the value above.
        legacy: Repeat the released code: ε before bias correction, decay by the unscheduled learning rate
            on the updated parameter.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so where it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.

    Raises:
        ConfigurationError: A setting out of range.

    Examples:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = SageAdamW([w], lr=0.1, beta3=0.8, weight_decay=0.0)
        >>> for scale in (1, 2):  # f = 0, then f > 0
        ...     optimizer.zero_grad()
        ...     (scale * w**3).sum().backward()
        ...     optimizer.step()
        ...     print(torch.equal(w, torch.tensor([1.0, -2.0])))
        True
        False

    Source: Liang et al., "No Parameters Left Behind" (ICLR 2022, arXiv 2202.02664), Algorithm 2; the released
    form is that of the authors' code.
    """

    def base_state(self, group: Mapping[str, Any]) -> dict[str, float]:
        """The state of AdamW."""
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def rule(self, group: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """`rules.adamw`."""
        return rules.adamw, {"legacy": group["legacy"], **_branches(group)}

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """The numbers of `rules.adamw`."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        decayed_by = float(group.get("initial_lr", lr)) if group["legacy"] else lr
        return {
            "step_size": lr / (1 - beta1**step),
            "beta1_complement": 1 - beta1,
            "beta2": beta2,
            "beta2_complement": 1 - beta2,
            "root": (1 - beta2**step) ** 0.5,
            "eps": group["eps"],
            "keep": 1 - decayed_by * group["weight_decay"],
            **(sage_scalars(group, group["eps"], step) if group["sage"] else {}),
        }


class SageAdamax(_SageAdam):
    """Adamax in which each coordinate's learning rate follows its sensitivity (SAGE).

        I = |θ g|,   Î = β₃ Î + (1-β₃) I
        released:  f = |I-Î| / (Î+s),      s = ε²
        paper:     f = (|I-Î|+s) / (Î+s),  s = 1e-12
        θ = (1 - lr λ) θ - f · lr/(1-β₁ᵗ) · m / u,   u = max(β₂ u, |g|+ε)

    The authors' released example fine-tunes BERT-base on MNLI with it: lr 2e-4, β₃ 0.85. The state is
    `exp_avg`, `exp_inf` and `sensitivity` (Î).

    Args:
        params: Parameters, (name, parameter) pairs, or groups. A group with `sage=False` gets plain Adamax,
            in the arithmetic of `torch.optim.Adamax` (with decoupled weight decay); see `sage_param_groups`.
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        betas: β₁ and β₂ in [0, 1).
        beta3: β₃ in [0, 1), decay of the average sensitivity; useful values are 0.6-0.9.
        eps: ε ≥ 0.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule, not scaled by f.
        form: "released" or "paper".
        sensitivity_eps: s; None takes the value above.
        legacy: Repeat the released code: θ = θ - f · lr · (m/(u+ε) + λ θ), without bias correction.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so where it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.

    Raises:
        ConfigurationError: A setting out of range.

    Examples:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SageAdamax([w], lr=0.1, weight_decay=0.0)
        >>> w.square().sum().backward()
        >>> optimizer.step()  # the first factor is β₃/(1-β₃) = 3, the first Adamax step is lr
        >>> round(w.item(), 4)
        0.7

    Source: Liang et al., "No Parameters Left Behind" (ICLR 2022, arXiv 2202.02664), Algorithm 1 with Adamax
    as the base; the released form is that of the authors' code.
    """

    def base_state(self, group: Mapping[str, Any]) -> dict[str, float]:
        """The state of Adamax."""
        return {"exp_avg": 0.0, "exp_inf": 0.0}

    def rule(self, group: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """`rules.adamax`."""
        return rules.adamax, {"legacy": group["legacy"], **_branches(group)}

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """The numbers of `rules.adamax`."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        return {
            "step_size": lr if group["legacy"] else lr / (1 - beta1**step),
            "beta1_complement": 1 - beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "keep": 1 - lr * group["weight_decay"],
            "weight_decay": group["weight_decay"],
            **(sage_scalars(group, group["eps"]) if group["sage"] else {}),
        }


class SageSGD(_SageOptimizer):
    """SGD in which each coordinate's learning rate follows its sensitivity (SAGE).

        I = |θ g|,   Î = β₃ Î + (1-β₃) I
        released:  f = |I-Î| / (Î+s)        paper:  f = (|I-Î|+s) / (Î+s)
        b = μ b + g,   θ = (1 - lr λ) θ - f · lr · b      (Nesterov: g + μ b in place of b)

    The state is `momentum_buffer` (with momentum) and `sensitivity` (Î).

    Args:
        params: Parameters, (name, parameter) pairs, or groups. A group with `sage=False` gets plain SGD, in
            the arithmetic of `torch.optim.SGD` (with decoupled weight decay).
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        momentum: μ in [0, 1).
        beta3: β₃ in [0, 1), decay of the average sensitivity; useful values are 0.6-0.9.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule, not scaled by f.
        nesterov: Look ahead; needs momentum.
        form: "released" or "paper".
        sensitivity_eps: s; None means 1e-12.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so where it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.

    Raises:
        ConfigurationError: A setting out of range, or `nesterov` without momentum.

    Examples:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SageSGD([w], lr=0.1, momentum=0.9)
        >>> w.square().sum().backward()
        >>> optimizer.step()  # f = 3, g = 2
        >>> round(w.item(), 4)
        0.4

    Source: Liang et al., "No Parameters Left Behind" (ICLR 2022, arXiv 2202.02664), Algorithm 1.
    """

    def __init__(
        self,
        params: Any,
        lr: Any,
        momentum: float = 0.0,
        beta3: float = 0.75,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        form: str = "released",
        sensitivity_eps: float | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        stochastic_rounding: bool = False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "beta3": beta3,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
            },
            form=form,
            sensitivity_eps=sensitivity_eps,
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

    def base_state(self, group: Mapping[str, Any]) -> dict[str, float]:
        """The state of SGD."""
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def rule(self, group: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """`rules.sgd`."""
        branches = {
            "has_momentum": group["momentum"] != 0,
            "nesterov": group["nesterov"],
            "sage_on": group["sage"],
        }
        return rules.sgd, {**branches, **_branches(group)}

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """The numbers of `rules.sgd`."""
        lr = float(group["lr"])
        return {
            "step_size": -lr,
            "momentum": group["momentum"],
            "keep": 1 - lr * group["weight_decay"],
            **(sage_scalars(group, 1e-6) if group["sage"] else {}),
        }
