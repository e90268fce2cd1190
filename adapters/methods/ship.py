"""SHIP: images of classes that have none, made by a prompt generator as embeddings."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, Kernel
from onceclip.adapters.method import Method, zero_shot_head
from onceclip.adapters.methods.coop import CONTEXT, TOWER_NEEDED, start_of, tower_of
from onceclip.adapters.methods.tip_adapter import TipAdapter
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter, linear_start, recipe

_SEED = 0  # of the noise that images are made of, the same for every class


class SHIP(Method):
    """Tip-Adapter on the support and on rows that a variational autoencoder makes for classes without images.

    Encoder: `h = relu(E x)`, `mean = M h`, `logvar = V h`. Decoder: `offset = B relu(A z)` is added to every token of
    the context; the made row is the unit class vector of that prompt. `loss = mean |made - x|^2 + KL`. A class without
    support gets `made` rows; all classes do that are met later.

    Source: Improving Zero-Shot Generalization for CLIP with Synthesized Prompts (Wang et al., ICCV 2023), equations 3
    to 6; the authors put several few-shot methods on the rows, here it is Tip-Adapter.
    """

    name = "ship"
    summary = "Tip-Adapter with generated rows of classes without images"
    family = "prompt"
    equation = "logits = s x.W' + alpha exp(-beta (1 - x.K')) L, K with made rows unit(tower(v + B relu(A z), name))"
    needs = TOWER_NEEDED
    hyperparameters = {
        **TipAdapter.hyperparameters,
        "made": Hyperparameter(16, "rows that are made for a class without images", low=1, high=65_536, retrain=False),
        "words": CONTEXT["words"], "length": CONTEXT["length"],
        "hidden": Hyperparameter(512, "width of the hidden layers; 4096 in the paper", low=1, high=65_536),
        **recipe(learning_rate=1e-3, epochs=50),
    }
    presets = {"paper": {"words": "", "length": 4, "hidden": 4096, "learning_rate": 1e-3, "batch_size": 64}}
    mixing = "alpha"
    transfers = True
    wants_tower = True
    shares_steps = False

    def prepare(self, task: Task) -> Task:
        return replace(task, tower=tower_of(task))

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        context = start_of(prepared, self.words, self.length, generator)
        dim, width = prepared.dim, context.shape[1]
        shapes = {"encode": (self.hidden, dim), "mean": (dim, self.hidden), "logvar": (dim, self.hidden),
                  "decode": (self.hidden, dim), "offset": (width, self.hidden)}
        return {"context": context, **{name: linear_start(shape, generator, context)
                                       for name, shape in shapes.items()}}

    def loss(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
             generator: torch.Generator) -> Tensor:
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows)
        return sum(self.parts(prepared, parameters, rows, label, noise), start=rows.new_zeros(()))

    def parts(self, prepared: Task, parameters: dict[str, Tensor], rows: Tensor, label: Tensor,
              noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and divergence, means over rows. noise: (n, dim), standard normal."""
        hidden = (rows @ parameters["encode"].T).relu()
        mean, logvar = hidden @ parameters["mean"].T, hidden @ parameters["logvar"].T
        made = self.make(prepared, parameters, label, mean + noise * (logvar / 2).exp())
        divergence = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(dim=1)
        return (made - rows).square().sum(dim=1).mean(), divergence.mean()

    def make(self, prepared: Task, parameters: dict[str, Tensor], label: Tensor, code: Tensor) -> Tensor:
        """Unit rows (n, dim) of classes (n,), of codes (n, dim)."""
        offset = (code @ parameters["decode"].T).relu() @ parameters["offset"].T
        names = prepared.text.class_names
        tower = tower_of(prepared).of([names[number] for number in label.tolist()])
        return tower.encode(parameters["context"] + offset.unsqueeze(1))

    def terms(self, prepared: Task, parameters: dict[str, Tensor]) -> tuple[Head, Head]:
        support, classes = prepared.support, prepared.classes
        like = prepared.text.embedding
        keys, label = like.new_zeros(0, prepared.dim), torch.zeros(0, dtype=torch.int64, device=like.device)
        if len(support):
            keys, label = support.keys, support.label
        without = torch.nonzero(torch.bincount(label, minlength=classes) == 0)[:, 0]
        noise = torch.randn(self.made, prepared.dim, generator=torch.Generator().manual_seed(_SEED),
                            dtype=torch.float64).to(like)
        made = [self.make(prepared, parameters, number.expand(self.made), noise) for number in without]
        return zero_shot_head(prepared), Kernel(torch.cat([keys, *made]), torch.cat(
            [label, without.repeat_interleave(self.made)]), classes, self.beta)
