"""The linear probe of the CLIP paper, on features before the projection."""

from __future__ import annotations

from torch import Tensor

from onceclip.adapters.heads import Head, Projected
from onceclip.adapters.methods.lpclip import LpClip
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Rows, Task


class LinearProbePreproj(LpClip):
    """The CLIP paper's linear probe: logistic regression on what a vision transformer gives before its projection.

    As `lpclip`, on `preproj` instead of embeddings.

    Source: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), appendix A.3:
    features before the projection to the joint space, L-BFGS, C chosen on validation rows.

    Example:
        >>> with_outputs = onceclip.make_task(store, shots=4, outputs=["preproj"])
        >>> classifier = onceclip.adapters.LinearProbePreproj(C=1.0).fit(with_outputs)
        >>> classifier.logits(with_outputs.support.input(classifier.inputs)).shape
        torch.Size([16, 4])
    """

    name = "linear-probe-preproj"
    summary = "the CLIP paper's probe, on features before the projection"
    equation = "logits = v.W' + b,  min C sum CE + |W|^2 / 2"
    inputs = ("preproj",)
    any_inputs = True
    needs = "features before the projection (extract --preproj)"

    def training_rows(self, task: Task, prepared: Task, epoch: int) -> tuple[Tensor, Tensor]:
        return unit(self.raw(task.support)), task.support.label

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return Projected(super().head(prepared, parameters))

    def centre(self, prepared: Task) -> Tensor:
        return unit(self.raw(prepared.support)).mean(dim=0)

    def raw(self, rows: Rows) -> Tensor:
        return rows.input(self.inputs)
