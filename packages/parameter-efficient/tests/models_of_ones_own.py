"""Small models of plain torch, and in them what transformers' own models do not have."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32


class Attention(nn.Module):
    """Self-attention of four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (4, 8)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        return self.wo(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Inner(nn.Module):
    """A feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.inner = Attention(), Inner()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.inner(self.norm2(x))


class Flat(nn.Module):
    """Embeddings, blocks, norm and head are children of the model itself."""

    def __init__(self, blocks: nn.Module | None = None, head: nn.Module | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(50, WIDTH)
        self.blocks = blocks or nn.ModuleList([Block(), Block()])
        self.norm, self.classifier = nn.LayerNorm(WIDTH), head or nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        for block in self.blocks.values() if isinstance(self.blocks, nn.ModuleDict) else self.blocks:
            x = block(x)
        return self.classifier(self.norm(x)[:, 0])


class Nested(nn.Module):
    """A body and a head."""

    def __init__(self, blocks: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.head = Flat(blocks, nn.Identity()), nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.body(input_ids))


class WithStatistics(Nested):
    """A batch norm in the head, and one that nothing trains in front of the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.body.words = nn.Sequential(self.body.words, nn.Flatten(0, 1), nn.BatchNorm1d(WIDTH))
        self.last = nn.BatchNorm1d(3)

    def forward(self, input_ids: Tensor) -> Tensor:
        words = self.body.words(input_ids).view(*input_ids.shape, WIDTH)
        for block in self.body.blocks:
            words = block(words)
        return self.last(self.head(self.body.norm(words)[:, 0]))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """A model in evaluation mode; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def texts(*shape: int) -> dict[str, Tensor]:
    """Made-up words."""
    return {"input_ids": torch.randint(1, 50, shape or (2, 9), generator=torch.Generator().manual_seed(3))}


def outputs(model: nn.Module, inputs: dict[str, Tensor] | None = None) -> Tensor:
    """Its output, or the logits in it."""
    with torch.no_grad():
        output = model(**(inputs or texts()))
    return output if isinstance(output, Tensor) else output.logits
