"""TPT and DiffTPT: the words in front of class names, moved for every image by a step against its views' entropy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.inference.base import Inference, Inferred, Queries
from onceclip.adapters.inference.views import chosen, log_mean, most_confident, number_of, scores_of, views_of
from onceclip.adapters.methods.coop import CONTEXT, start_of, tower_of
from onceclip.adapters.task import Task
from onceclip.adapters.tower import POSITIONS
from onceclip.adapters.training.trainable import Hyperparameter

_EPSILON, _DECAY = 1e-8, 0.01  # AdamW's
_PROMPTS = 256  # that are encoded at once, with those of another image


@dataclass(frozen=True)
class Start:
    """A task with the tower of its classes, a context (tokens, width), and where its tokens stand."""

    task: Task
    context: Tensor
    position: str


class TPT(Inference):
    """Prompts that a step of AdamW has moved, per image, towards a confident mean of its confident views.

    The first step has a closed form, `v' = (1 - rate 0.01) v - rate g / (|g| + 1e-8)`, with g the gradient of the
    entropy of the mean probability of the views of lowest entropy. What the step does to the scores of the prompts is
    added to the classifier's; of a classifier of these prompts the sum is the published score. It starts from the
    context that the classifier learned, where it learned it, if it learned one for all classes, else from words. Every
    image takes two passes of the text tower over all classes.

    Source: Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models (Shu et al., NeurIPS 2022),
    equations 2 to 4.
    """

    name = "tpt"
    summary = "TPT: learned words, moved for every image by one step against the entropy of its views"
    equation = "logits = f(x) + s x.(w(v') - w(v)),  v' = v - rate g / (|g| + 1e-8),  g = dH(mean p)/dv"
    hyperparameters = {
        "rate": Hyperparameter(5e-3, "size of the step", high=10.0),
        "share": Hyperparameter(0.1, "share of the views that the step looks at, those of lowest entropy", high=1.0),
        "words": CONTEXT["words"],
    }
    sees = "views"
    wants_tower = True

    def prepare(self, classifier: Classifier, task: Task, unlabelled: Queries | None = None) -> Start:
        """What every image starts from."""
        if not self.words.strip():
            raise MethodError(f"{self.name} starts from words: give some, such as words='a photo of a'")
        own, words = replace(task, tower=tower_of(task)), str(self.words)
        learned = classifier.parameters.get("context")
        if learned is not None and learned.ndim == 2 and learned.shape[1] == tower_of(own).width:
            position = classifier.hyperparameters.get("position")
            return Start(own, learned.to(tower_of(own).like), str(position) if position in POSITIONS else POSITIONS[0])
        return Start(own, start_of(own, words, 1, torch.Generator()), POSITIONS[0])

    def infer(self, classifier: Classifier, queries: Queries, prepared: Any) -> Inferred:
        task, start = prepared.task, prepared
        views = views_of(queries)
        scores = scores_of(classifier, views)
        kept = chosen(views, self.kept(scores))
        size = max(1, _PROMPTS // task.classes)
        before = tower_of(task).encode(start.context, start.position)
        changes = [task.logit_scale * ((tower_of(task).encode_several(moved(start, piece, self.rate), start.position)
                                        - before) @ plain.unsqueeze(-1)).squeeze(-1)
                   for piece, plain in zip(kept.split(size), views[:, 0].split(size), strict=True) if len(piece)]
        return Inferred(scores[:, 0] + torch.cat(changes) if changes else scores[:, 0])

    def kept(self, scores: Tensor) -> Tensor:
        """Places of the views that the step looks at (n, kept). scores: (n, views, classes)."""
        return most_confident(scores, self.share)


class DiffTPT(TPT):
    """TPT on views of a generative model, imported as any others, of which those that differ too much are left out.

    First the `near` share of the views with the largest cosine of their logits with the plain image's, then the share
    of lowest entropy. The paper's text compares features, its code logits; here it is the code's way.

    Source: Diverse Data Augmentation with Diffusions for Effective Test-time Prompt Tuning (Feng et al., ICCV 2023).
    """

    name = "difftpt"
    summary = "DiffTPT: TPT on generated views that look like the image"
    hyperparameters = {
        **TPT.hyperparameters,
        "near": Hyperparameter(0.8, "share of the views that are kept as like the image", high=1.0),
        "share": Hyperparameter(0.3, "share of those that the step looks at, those of lowest entropy", high=1.0),
    }

    def kept(self, scores: Tensor) -> Tensor:
        others = scores[:, 1:] if scores.shape[1] > 1 else scores
        like = (normalize(others, dim=2) * normalize(scores[:, :1], dim=2)).sum(dim=2)
        near = like.argsort(dim=1, descending=True, stable=True)[:, :number_of(self.near, others.shape[1])]
        best = near.gather(1, most_confident(chosen(others, near), self.share))
        return best + (scores.shape[1] - others.shape[1])


def moved(start: Start, views: Tensor, rate: float) -> Tensor:
    """The context (tokens, width) after a step for each image: (n, tokens, width). views: (n, kept, dim), unit."""
    with torch.enable_grad():
        contexts = start.context.expand(len(views), -1, -1).clone().requires_grad_()
        vectors = tower_of(start.task).encode_several(contexts, start.position)
        mean = log_mean(start.task.logit_scale * views @ vectors.transpose(1, 2))
        slope, = torch.autograd.grad(-(mean.exp() * mean).sum(), contexts)
    return (1 - rate * _DECAY) * start.context - rate * slope / (slope.abs() + _EPSILON)
