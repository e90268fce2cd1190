"""The linear probe of CoOp: logistic regression by scikit-learn's C."""

from __future__ import annotations

from torch import Tensor

from onceclip.adapters.methods.linear_probe import LinearProbe
from onceclip.adapters.task import Rows, Task
from onceclip.adapters.training.trainable import Hyperparameter


class LpClip(LinearProbe):
    """Logistic regression by L-BFGS whose C means what it does in published code: on embeddings of their raw length.

    Minimises `C sum cross-entropy + 1/2 |W|^2` on rows of unit length times the root mean square of the raw lengths,
    which is `linear-probe` with `l2 = 1 / (C rows length^2)`. Raw rows differ from these by each image's own length
    alone, some per cent, which says nothing of its class. The published searches start with a few powers of ten and
    then halve the interval; here all powers are tried, and `--search halves` goes on from there.

    Source: Learning to Prompt for Vision-Language Models (Zhou et al., IJCV 2022), `lpclip`; the default C from the
    README of openai/CLIP.
    """

    name = "lpclip"
    summary = "logistic regression by C, CoOp's protocol"
    equation = "logits = x.W' + b,  min C sum CE + |W|^2 / 2"
    hyperparameters = {
        "C": Hyperparameter(0.316, "scikit-learn's inverse strength of the decay",
                            search=tuple(10.0**power for power in range(-5, 7)), low=1e-12, high=1e12),
    }

    def penalty(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        rows = self.raw(prepared.support)
        return parameters["weight"].square().sum() / (2 * self.C * len(rows) * rows.square().sum(dim=-1).mean())

    def raw(self, rows: Rows) -> Tensor:
        """What training sees before it is scaled to unit length: (rows, width)."""
        return rows.embedding if rows.views is None else rows.views.flatten(0, 1)
