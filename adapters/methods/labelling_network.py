"""NoLA's labelling network: a small network on features of an encoder that may know no text."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Projected
from onceclip.adapters.heads.layers import Perceptron
from onceclip.adapters.method import Method
from onceclip.adapters.task import EMBEDDING, Task
from onceclip.adapters.training.trainable import Hyperparameter, linear_bias, linear_start, recipe


class LabellingNetwork(Method):
    """A network of one hidden layer and a ReLU on unit features; it never sees the text.

    The second layer starts at zero, so that no class is ahead of another by chance.

    Made to learn labels that CLIP guessed on features of another encoder of the same images, such as DINO's:
    `--support nola --join dino=STORE --inputs dino/embedding`.

    Source: CLIP meets DINO for Tuning Zero-Shot Classifier using Unlabeled Image Collections (Imam et al., WACV 2025),
    section 3.2; width, Adam, 50 epochs and batches of 32 from the authors' code.
    """

    name = "labelling-network"
    summary = "two-layer network on features of any encoder"
    family = "adapter"
    equation = "logits = relu(x.D' + d).U' + u"
    hyperparameters = {
        "hidden": Hyperparameter(256, "width of the hidden layer", low=1, high=1e5),
        **recipe(learning_rate=1e-3, epochs=50, batch_size=32, weight_decay=0.0, optimizer="adam", schedule="constant",
                 rates=(1e-4, 1e-3, 1e-2)),
    }
    needs_text = False
    any_inputs = True
    weighs = True

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        width, like, hidden = prepared.width(self.inputs), prepared.support.embedding, int(self.hidden)
        return {"down": linear_start((hidden, width), generator, like),
                "down_bias": linear_bias(hidden, width, generator, like),
                "up": like.new_zeros(prepared.classes, hidden), "up_bias": like.new_zeros(prepared.classes)}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        network = Perceptron(*(parameters[name] for name in ("down", "down_bias", "up", "up_bias")))
        return network if self.inputs == (EMBEDDING,) else Projected(network)
