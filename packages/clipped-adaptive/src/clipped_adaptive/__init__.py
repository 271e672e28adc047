"""Adam, AdaGrad and SGD clipped against heavy-tailed noise, and the tools that measure the tails."""

from importlib import import_module
from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from clipped_adaptive import heavy_tails
    from clipped_adaptive.adagrad import ClippedAdaGrad
    from clipped_adaptive.adam import ClippedAdam
    from clipped_adaptive.algorithms import ALGORITHMS, from_paper
    from clipped_adaptive.clipping import ClipReport, RunningQuantile
    from clipped_adaptive.layers import layer_groups
    from clipped_adaptive.sgd import ClippedSGD

__all__ = [
    "ALGORITHMS",
    "ClipReport",
    "ClippedAdaGrad",
    "ClippedAdam",
    "ClippedSGD",
    "RunningQuantile",
    "from_paper",
    "heavy_tails",
    "layer_groups",
]

_from_module = lazy_exports(
    __name__,
    {
        "ALGORITHMS": ".algorithms",
        "ClipReport": ".clipping",
        "ClippedAdaGrad": ".adagrad",
        "ClippedAdam": ".adam",
        "ClippedSGD": ".sgd",
        "RunningQuantile": ".clipping",
        "from_paper": ".algorithms",
        "layer_groups": ".layers",
    },
)


def __getattr__(name: str) -> object:
    return import_module(".heavy_tails", __name__) if name == "heavy_tails" else _from_module(name)
