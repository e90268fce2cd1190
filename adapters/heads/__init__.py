"""The few pieces that every fitted classifier is a sum of: unit image rows in, logits out.

A head is pure and row-independent, differentiable in its tensors, and saved by its fields alone. While many runs are
trained together its tensors, numbers too, have a leading axis of runs; `product` and `per_run` see to it.
"""

from onceclip.adapters.heads.bilinear import ProbabilityBilinear
from onceclip.adapters.heads.bottleneck import Bottleneck, blend
from onceclip.adapters.heads.columns import Columns
from onceclip.adapters.heads.head import Head
from onceclip.adapters.heads.kernel import Kernel, sum_by_class
from onceclip.adapters.heads.linear import Linear
from onceclip.adapters.heads.machine import FourierFeatures, KernelMachine, fourier
from onceclip.adapters.heads.packing import HEADS, pack, unpack
from onceclip.adapters.heads.projected import Projected
from onceclip.adapters.heads.prompts import PromptMax, PromptWeighted
from onceclip.adapters.heads.weighted import Sum

__all__ = [
    "HEADS", "Bottleneck", "Columns", "FourierFeatures", "Head", "Kernel", "KernelMachine", "Linear",
    "ProbabilityBilinear", "Projected", "PromptMax", "PromptWeighted", "Sum", "blend", "fourier", "pack",
    "sum_by_class", "unpack",
]
