"""SS-Text: class vectors of images and text in one line of algebra."""

from __future__ import annotations

from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method, class_head
from onceclip.adapters.ops import class_sums, unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_LEAST = 1e-3


class SSText(Method):
    """Class vectors `p_c = s / (N lambda_c) sum_{i in c} x_i + text_weight w_c`, compared by their cosine.

    lambda_c is 1 / N (`form=plain`), or 1 / n_c (`form=plus`), where the vectors are pushed apart besides: `p_c` less
    `unit(2 p_c - mean_c p_c)`. N counts all support rows, n_c those of a class. A class without images keeps its text.

    A reference, and no recommendation: with text_weight=1, as published, images count `s n_c` times as much as the text
    and drown it, and with many classes the push of `plus` outweighs everything else. Made for a few classes that
    zero-shot does not know.

    Source: Few-Shot, Now for Real: Medical VLMs Adaptation without Balanced Sets (Silva-Rodriguez et al., MICCAI 2025),
    the solver of the authors' code.
    """

    name = "ss-text"
    summary = "class vectors of images and text in closed form; a reference"
    family = "closed form"
    equation = "logits_c = s x.unit(p_c),  p_c = s / (N lambda_c) sum_{i in c} x_i + t w_c"
    hyperparameters = {
        "text_weight": Hyperparameter(1.0, "weight of the text; 1 is the paper's", high=1e12,
                                      search=(1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)),
        "form": Hyperparameter("plain", "SS-Text, or SS-Text+ with lambda per class and vectors pushed apart",
                               choices=("plain", "plus")),
    }
    weighs = True

    def prepare(self, task: Task) -> tuple[Task, Tensor, Tensor]:
        """The task, the sum of each class's unit support rows (classes, dim), and their number (classes,)."""
        rows, label = task.support.stacked
        weight = task.support.stacked_weight.to(rows)
        total = class_sums(rows * weight.unsqueeze(1), label, task.classes)
        return task, total, class_sums(weight, label, task.classes)

    def head(self, prepared: tuple[Task, Tensor, Tensor], parameters: dict[str, Tensor]) -> Head:
        task, total, count = prepared
        number = count.sum().clamp_min(1)
        inverse = (1 / count.clamp_min(1)) if self.form == "plus" else 1 / number.expand(task.classes)
        share = task.logit_scale / (number * inverse.clamp_min(_LEAST))
        vectors = share.unsqueeze(1) * total + self.text_weight * task.text.class_weights
        if self.form == "plus":
            vectors = vectors - unit(2 * vectors - vectors.mean(dim=0))
        return class_head(task, unit(vectors))
