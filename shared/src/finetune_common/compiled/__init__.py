"""Functions that run as compiled code, and the random numbers that such code can draw.

finetune_common.compiled.function    compile, or run as written and say why
finetune_common.compiled.random      random numbers as a function of their position: no generator moves
"""

from finetune_common.compiled.function import Compiled
from finetune_common.compiled.random import normal, random_bits, scramble, uniform16

__all__ = ["Compiled", "normal", "random_bits", "scramble", "uniform16"]
