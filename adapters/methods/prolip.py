"""ProLIP: the encoder's own projection, trained further on cached features."""

from __future__ import annotations

from torch import Tensor

from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Head, Projected
from onceclip.adapters.method import zero_shot_head
from onceclip.adapters.methods.rla import RLA
from onceclip.adapters.task import Task


class ProLIP(RLA):
    """The encoder's own projection, trained further on the features before it and held near where it was.

    `logits = s unit(v P + b) W^T`, with the penalty `strength / shots |P - P0|^2`; the bias, which only some encoders
    have, stays. The projection belongs to no class and serves other ones. Where views of the features are stored they
    take turns, the second one first.

    Source: CLIP's Visual Embedding Projector is a Few-shot Cornucopia (Fahes et al., 2024); optimizer,
    epsilon, schedule, full batches and order of views from the authors' code.

    Example:
        >>> with_outputs = onceclip.make_task(store, shots=4, outputs=["preproj"])
        >>> classifier = onceclip.adapters.ProLIP(epochs=50).fit(with_outputs)
        >>> classifier.logits(with_outputs.support.input(classifier.inputs)).shape
        torch.Size([16, 4])
    """

    name = "prolip"
    summary = "the encoder's projection trained further, regularised"
    equation = "logits = s unit(v P + b).W',  min mean CE + strength / shots |P - P0|^2,  P from P0"
    inputs = ("preproj",)
    needs = "features before the projection (extract --preproj)"

    def check(self, task: Task) -> None:
        super().check(task)
        self.start(task)

    def start(self, task: Task) -> Tensor:
        if task.projection is None:
            raise MethodError("prolip trains the encoder's projection and the store has none: extract again with "
                              "--preproj, or use --method rla")
        return task.projection.T.contiguous()

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return Projected(zero_shot_head(prepared), parameters["matrix"], prepared.projection_bias)

    def training_rows(self, task: Task, prepared: Task, epoch: int) -> tuple[Tensor, Tensor]:
        views = task.support.others.get("preproj_view")
        rows = task.support.input(self.inputs) if views is None else views[:, (epoch + 1) % views.shape[1]]
        return rows, task.support.label
