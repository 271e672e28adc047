"""Weights that are not a module's own: writing to them would change other modules, or nothing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor, nn

from parameter_efficient.typed import named_modules

__all__ = ["not_its_own", "places_by_parameter"]


def places_by_parameter(model: nn.Module) -> dict[int, dict[str, nn.Module]]:
    """Return a parameter's id → its names in the model, each with the module that holds it."""
    places: dict[int, dict[str, nn.Module]] = {}
    for name, module in named_modules(model):
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), {})[f"{name}.{attribute}".lstrip(".")] = module
    return places


def not_its_own(
    model: nn.Module, modules: Mapping[str, nn.Module], updates: Mapping[str, Hashable] | None = None
) -> tuple[str, str] | None:
    """Return the name of the first module whose weights cannot be written to, and why; None if all can.

    Args:
        model: The model.
        modules: Modules in it, by their names.
        updates: Name → what is written to the module; those with equal updates may share a weight.
    """
    places, updates = places_by_parameter(model), updates or {}
    written = {inner: updates.get(name, name) for name, m in modules.items() for inner in m.modules()}
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter):
            return name, "its weight is computed from other parameters"
        inside = set(module.modules())
        for parameter in module.parameters():
            for place, holder in places[id(parameter)].items():
                if holder not in inside and written.get(holder) != written[module]:
                    shared = place.replace(".base_layer", "")
                    return name, f"{shared} is the same parameter"
    return None
