"""The learned keys and values of one attention module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parameter_efficient.attachment import DeviceAndDtype, Resident
from parameter_efficient.configs import PrefixTuning

__all__ = ["Prefix"]


class Prefix(Resident):
    """Keys and values of shapes (n, width of all key heads) and (n, width of all value heads).

    Args:
        widths: Elements of a token's key, and of its value.
        config: Length, initialisation and dtype.
        generator: Draws them.
        place: Device and dtype.
        model_config: The configuration that names the model's attention function.
    """

    reason = "its keys and values belong to no token"

    def __init__(
        self,
        widths: tuple[int, int],
        config: PrefixTuning,
        generator: torch.Generator,
        place: DeviceAndDtype,
        model_config: object,
    ) -> None:
        super().__init__()
        keys, values = (torch.randn(config.length, n, generator=generator) * config.init_std for n in widths)
        self.model_config = model_config
        self.keys = nn.Parameter(keys.to(**place))
        self.values = nn.Parameter(values.to(**place))

    @property
    def length(self) -> int:
        """Return n."""
        return self.keys.shape[0]

    def prepend(self, learned: Tensor, states: Tensor) -> Tensor:
        """Put learned rows before states of shape (batch, heads, tokens, width of a head)."""
        batch, heads, _, width = states.shape
        rows = learned.view(-1, heads, width).transpose(0, 1).to(states.dtype)
        return torch.cat([rows.expand(batch, -1, -1, -1), states], dim=2)

    def open_mask(self, mask: Tensor) -> Tensor:
        """Let every query see the prefix: the mask's last dimension grows by n."""
        return F.pad(mask, (self.length, 0), value=1 if mask.ndim == 2 or mask.dtype == torch.bool else 0)
