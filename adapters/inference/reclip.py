"""ReCLIP's label propagation in the space that tells the class texts apart."""

from __future__ import annotations

import torch

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads.neighbors import LEAST
from onceclip.adapters.inference.base import Inference, Inferred, Queries, prototypes, similarities
from onceclip.adapters.inference.graph import blocks, sparse, symmetric
from onceclip.adapters.inference.zlap import spread
from onceclip.adapters.ops import unit
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter


class ReCLIP(Inference):
    """Images and class vectors are projected on the texts' singular directions but the first; labels spread there.

    The first direction is what all texts have in common. By as much as `similarities` differ from the cosines, which
    they do not for zero-shot, those of images and classes are moved. The training of the encoder that the paper goes
    on with is left out.

    Source: ReCLIP: Refine Contrastive Language Image Pre-Training with Source Free Domain Adaptation (Hu et al., WACV
    2024), section 3.2; the system is solved to 1e-6, and to 1e-10 in float64.
    """

    name = "reclip"
    summary = "labels spread over nearest neighbours in the space of the class texts"
    equation = "logits = ln F,  (I - alpha D^-1/2 A D^-1/2) F = one-hot classes,  A = (cos(UU'x, UU'y) + 1)/2, top k"
    hyperparameters = {
        "neighbors": Hyperparameter(20, "largest affinities that each node keeps", low=1, high=1000),
        "alpha": Hyperparameter(0.99, "how far labels spread", high=0.9999),
        "normalize_classes": Hyperparameter(False, "divide the scores of a class by their sum over the images, which "
                                            "assumes balanced classes"),
        "directions": Hyperparameter(0, "singular directions of the texts that are kept, the first, which is dropped, "
                                     "among them; 0 for 768, or 250 with more than 500 classes", high=1e5),
    }

    @property
    def prior(self) -> str:  # type: ignore[override]
        return "uniform" if self.normalize_classes else "none"

    def infer(self, classifier: Classifier, queries: Queries, prepared: Task) -> Inferred:
        text, rows = prototypes(classifier, prepared), queries.embedding
        classes = len(text)
        moved = similarities(classifier, queries, prepared).sub_(rows @ text.T)
        kept = self.directions or (250 if classes > 500 else 768)
        basis = torch.linalg.svd(text.T, full_matrices=False).U[:, 1:kept]
        nodes = unit(torch.cat([text, rows]) @ basis)  # within the projection: the same cosines as outside of it
        number = min(self.neighbors, len(nodes) - 1)
        value = nodes.new_empty(len(nodes), number)
        index = torch.empty(len(nodes), number, dtype=torch.int64, device=nodes.device)
        for place in blocks(len(nodes), len(nodes)):
            block = nodes[place] @ nodes.T
            first = max(place.start, classes)
            block[first - place.start:, :classes] += moved[first - classes:max(place.stop - classes, 0)]
            if place.start < classes:
                block[:classes - place.start, classes:] += moved[:, place.start:place.stop].T
            block = block.add_(1).div_(2)
            at = torch.arange(len(block), device=nodes.device)
            block[at, at + place.start] = 0
            value[place], index[place] = block.topk(number, dim=1)
        graph = symmetric(sparse(value.clamp_min_(0), index, len(nodes)))
        scores, steps = spread(graph, classes, self.alpha, self.progress)
        scores = scores[classes:]
        if self.normalize_classes:
            scores = scores / scores.sum(dim=0).clamp_min(LEAST)
        return Inferred(scores.clamp_min(LEAST).log(), diagnostics={"solver_steps": steps})
