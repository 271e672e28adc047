"""Keeps the API pages to what users call: methods that a base class declares are shown there alone."""

import griffe


class HideOverrides(griffe.Extension):
    """Hides a method where a base class of this project has one of that name: only subclasses need it.

    The base class's own page keeps it.
    """

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Look at every class once its package is loaded."""
        for module in _modules(pkg):
            for cls in list(module.classes.values()):
                if cls.is_alias:
                    continue
                declared = {name for base in cls.mro() for name in base.members}
                for name in declared & cls.members.keys():
                    if not name.startswith("__"):
                        cls.del_member(name)


def _modules(module: griffe.Module) -> list[griffe.Module]:
    below = [part for part in module.modules.values() if not part.is_alias]
    return [module, *(deeper for part in below for deeper in _modules(part))]
