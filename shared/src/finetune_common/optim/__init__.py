"""Element-wise optimizers: one update function, three ways to run it.

ElementwiseOptimizer     the base class
finetune_common.optim.ops    the arithmetic that rules are written in
finetune_common.optim.run    the three ways: reference, foreach, fused
"""

from finetune_common.optim.batch import Batch
from finetune_common.optim.loading import Elsewhere
from finetune_common.optim.norms import whole_norms
from finetune_common.optim.optimizer import ElementwiseOptimizer
from finetune_common.optim.rows import flat_row
from finetune_common.optim.run import Row, Rule, arithmetic_dtype, run

__all__ = [
    "Batch",
    "ElementwiseOptimizer",
    "Elsewhere",
    "Row",
    "Rule",
    "arithmetic_dtype",
    "flat_row",
    "run",
    "whole_norms",
]
