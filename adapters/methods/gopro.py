"""GOPro: prompts that every image moves, held alike for views of it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from onceclip.adapters.methods.cocoop import BATCHES, CONDITIONAL, CONDITIONAL_PAPER, CoCoOp
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_SEEN = 3  # rows of an image in a step: itself and two views


class GOPro(CoCoOp):
    """CoCoOp whose class vectors are to be the same for an image and for two views of it.

    `loss = CE + consistency (MSE(W(x), W(x')) + MSE(W(x), W(x''))) + contrast NT-Xent(h(x), h(x'))`, with W(x) the
    class vectors of x, h the network's first layer and NT-Xent the loss of SimCLR.

    Views are the stored ones, `extract --views`, in turn; the paper's are those of MoCo and AugMix. Without stored
    views an image is compared with itself. The paper moves the context by mean and deviation of all blocks of the image
    model, which no store has of views: here it is moved by the embedding. Its last term trains a layer that nothing
    else reads; here it is the layer that the context is moved by. Its published numbers are not to be compared.

    Source: GOPro: Generate and Optimize Prompts in CLIP using Self-Supervised Learning (Singha et al., BMVC 2023),
    section 3; weights and temperature from the authors' code.
    """

    name = "gopro"
    summary = "CoCoOp whose prompts agree on views of an image"
    equation = "logits = s x.W(x)', W(x) = unit(tower(v + U relu(D x + d) + u, name)); loss = CE + MSE of W + NT-Xent"
    needs = f"{CoCoOp.needs}, best with views (extract --views)"
    hyperparameters = {
        **CONDITIONAL, **BATCHES,
        "consistency": Hyperparameter(1.0, "weight of the distance between class vectors of views", high=1e6),
        "contrast": Hyperparameter(0.1, "weight of the contrast between images", high=1e6),
        "temperature": Hyperparameter(0.1, "of the contrast", low=1e-3, high=1e3),
    }
    presets = {"cocoop": CONDITIONAL_PAPER}

    def check(self, task: Task) -> None:
        super().check(task)
        _ = task.support.embedding  # complains if rows are streamed: blocks come without views

    def training_rows(self, task: Task, prepared: Task, epoch: int) -> tuple[Tensor, Tensor]:
        """Of every image in turn itself and two views."""
        support = task.support
        seen = [support.unit] * _SEEN
        if support.views is not None:
            views = support.views[:, 1:] if support.views.shape[1] > 1 else support.views  # the first is the image
            seen[1:] = [unit(views[:, (2 * epoch + place) % views.shape[1]]) for place in range(2)]
        return torch.stack(seen, dim=1).flatten(0, 1), support.label.repeat_interleave(_SEEN)

    def batches(self, count: int, order: torch.Generator) -> list[Tensor | slice]:
        """`batch_size` images in a step, each with its views."""
        images = super().batches(count // _SEEN, order)
        return [each if isinstance(each, slice) else
                (_SEEN * each.unsqueeze(1) + torch.arange(_SEEN)).flatten() for each in images]

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        vectors = self.vectors_of(prepared, parameters, rows).unflatten(0, (-1, _SEEN))
        logits = self.logits(prepared, rows[::_SEEN], vectors[:, 0])
        apart = mse_loss(vectors[:, 0], vectors[:, 1]) + mse_loss(vectors[:, 0], vectors[:, 2])
        layer = rows @ parameters["down"].T + parameters["down_bias"]
        contrast = nt_xent(layer[::_SEEN], layer[1::_SEEN], self.temperature)
        return cross_entropy(logits, label[::_SEEN]) + self.consistency * apart + self.contrast * contrast


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of finding the other view of an image among all other rows of a batch.

    first, second: (n, dim), two views of every image.
    Source: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., ICML 2020), equation 1.
    """
    rows = unit(torch.cat([first, second]))
    cosine = (rows @ rows.T).fill_diagonal_(-torch.inf)
    other = torch.arange(len(rows), device=rows.device).roll(len(first))
    return cross_entropy(cosine / temperature, other)
