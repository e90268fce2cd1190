"""The few pieces that every fitted classifier is a sum of: unit image rows in, logits out.

A head is pure and row-independent, differentiable in its tensors, and saved by its fields alone. While many runs are
trained together its tensors, numbers too, have a leading axis of runs; `product` and `per_run` see to it.
"""

from onceclip.adapters.heads.base import Head
from onceclip.adapters.heads.kernel import FourierFeatures, Kernel, KernelMachine, fourier, sum_by_class
from onceclip.adapters.heads.layers import Bottleneck, blend
from onceclip.adapters.heads.linear import Columns, Linear, ProbabilityBilinear, Projected, Quadratic, Sum, mixed
from onceclip.adapters.heads.packing import HEADS, pack, unpack
from onceclip.adapters.heads.prompts import ConditionalPrompts, PromptMax, PromptWeighted, RoutedPrompts

__all__ = [
    "HEADS", "Bottleneck", "Columns", "ConditionalPrompts", "FourierFeatures", "Head", "Kernel", "KernelMachine",
    "Linear", "ProbabilityBilinear", "Projected", "PromptMax", "PromptWeighted", "Quadratic", "RoutedPrompts", "Sum",
    "blend", "fourier", "mixed", "pack", "sum_by_class", "unpack",
]
