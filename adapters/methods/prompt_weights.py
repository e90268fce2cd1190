"""Weights of the prompts, learned on the support rows."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method, class_head
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import recipe


class PromptWeights(Method):
    """Zero-shot whose class vectors are weighted means: `w_c = unit(sum_p exp(theta_g(p)) unit(t_cp))`.

    Prompts of one template share a theta over all classes, so that even few images say something of it; what the
    classes do not share, such as the sentences of a language model, has one theta together. Where there are no shared
    templates every prompt has a theta of its own. All start at 0, which is zero-shot; the decay pulls them there.

    Source: this project; the templates are weighted as in AutoCLIP (Metzen et al., TMLR 2024), but by labelled images.

    Example:
        >>> ensemble = onceclip.make_task(store, shots=4, text="ensemble")
        >>> onceclip.adapters.PromptWeights(epochs=50).fit(ensemble).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "prompt-weights"
    summary = "weights of the templates, learned on the shots"
    family = "text"
    equation = "logits_c = s x.w_c,  w_c = unit(sum_p exp(theta_g(p)) unit(t_cp))"
    hyperparameters = {**recipe(learning_rate=0.1, epochs=100)}

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        count = len(prepared.text.bank)
        return {"theta": prepared.text.embedding.new_zeros(count if count > 1 else len(prepared.text.embedding))}

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        text, theta = prepared.text, parameters["theta"]
        theta = theta[text.groups] if len(text.bank) > 1 else theta
        weight = theta.exp() if text.prompt_weight is None else theta.exp() * text.prompt_weight
        return class_head(prepared, text.vectors(weight))
