"""GaLore: the optimizer."""

import torch

from finetune_common.optim import arithmetic_dtype


class GaLore(torch.optim.Optimizer):
    """AdamW on projected gradients; its moments have the shape of the projection.

    For a matrix W of m × n, m ≤ n (of a taller one the transpose), with m above the rank r:
    P_t = r leading left singular vectors of G_t, with positive sums, at steps 1, T+1, 2T+1, …; else P_{t-1}
    R_t = P_tᵀ G_t
    M_t = β₁ M_{t-1} + (1-β₁) R_t;  V_t = β₂ V_{t-1} + (1-β₂) R_t²
    W_t = (1 - η λ) W_{t-1} - η α P_t (M_t / (1-β₁ᵗ)) / (√(V_t / (1-β₂ᵗ)) + ε)

    All else takes AdamW's step. The sign of a vector is free in the paper, and counts where moments go on in
    the next subspace. Arguments are those of `GaLoreOptions`. Source: Zhao et al. 2024, algorithm 2.
    """

    def __init__(
        self, params, lr, rank=4, every=200, scale=0.25, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    ) -> None:
        own = {"rank": rank, "every": every, "scale": scale}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay} | own)

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step; parameters without a gradient stay as they are."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, self.state[param], **group)
        return loss

    def _update(self, param, state, *, lr, rank, every, scale, betas, eps, weight_decay, **_) -> None:
        weight, grad = param, param.grad.to(arithmetic_dtype(param.dtype))
        projected = grad.ndim == 2 and min(grad.shape) > rank
        if projected and grad.shape[0] > grad.shape[1]:
            weight, grad = weight.t(), grad.t()
        step = state["step"] = state.get("step", 0) + 1
        if projected:
            if (step - 1) % every == 0:  # G's left singular vectors are the eigenvectors of the smaller G Gᵀ
                leading = torch.linalg.eigh(grad @ grad.t()).eigenvectors.flip(1)[:, :rank]
                state["projection"] = torch.where(leading.sum(0) < 0, -leading, leading)
            grad = state["projection"].t() @ grad
        m = state.setdefault("m", torch.zeros_like(grad))
        v = state.setdefault("v", torch.zeros_like(grad))
        m.lerp_(grad, 1 - betas[0])
        v.lerp_(grad.square(), 1 - betas[1])
        update = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
        if projected:
            update = scale * (state["projection"] @ update)
        weight.copy_(weight * (1 - float(lr) * weight_decay) - float(lr) * update)

    def load_state_dict(self, state_dict) -> None:
        """Load a state; torch alone would cast it to the parameters' dtype."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        own = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[param][name] = value if name == "step" else value.to(param.device, copy=True)
