"""Where the layers of a model are."""

from torch import nn


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model: the members of its outermost module lists, in order.

    Args:
        model: Any transformer; encoder and decoder count alike.

    Examples:
        >>> stack = nn.ModuleList(nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])) for _ in range(3))
        >>> len(find_layers(nn.Sequential(nn.Embedding(5, 2), stack)))
        3
    """
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else find_layers(child)
    return found
