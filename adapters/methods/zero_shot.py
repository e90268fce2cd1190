"""Zero-shot classification with the class prompts alone."""

from __future__ import annotations

from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.task import Task


class ZeroShot(Method):
    """The baseline of everything: `s x . w_c`, with w_c the unit mean of the class's unit prompt vectors.

    Source: CLIP (Radford et al., 2021), section 3.1.
    """

    name = "zero-shot"
    summary = "class prompts alone, no labelled image"
    family = "baseline"
    source = "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021"
    equation = "logits_c = s x.w_c,  w_c = unit(mean_p unit(t_cp))"
    needs_support = False

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return zero_shot_head(prepared)
