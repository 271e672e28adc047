"""Functions that run as compiled code, and the random numbers that such code can draw.

finetune_common.compiled.function    compile, or run as written and say why
finetune_common.compiled.direct      enter compiled code without torch's checks of its arguments
finetune_common.compiled.random      random numbers as a function of their position: no generator moves
"""

from finetune_common.compiled.direct import Direct, DirectByShape
from finetune_common.compiled.function import Compiled, calls_decide
from finetune_common.compiled.random import normal, random_bits, scramble, uniform16

__all__ = [
    "Compiled",
    "Direct",
    "DirectByShape",
    "calls_decide",
    "normal",
    "random_bits",
    "scramble",
    "uniform16",
]
