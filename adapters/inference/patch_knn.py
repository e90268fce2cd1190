"""Patch-kNN: how far the patches of an image are from all patches of normal ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.errors import MethodError
from onceclip.adapters.inference.anomaly import SETTING, normal_class, with_odds
from onceclip.adapters.inference.base import TRAIN, Inference, Inferred, Queries, log_scores
from onceclip.adapters.inference.views import patches_of
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

_ELEMENTS = 1 << 22  # cosines that are held at once


@dataclass(frozen=True)
class Bank:
    """Patches of normal images (patches, dim), unit, and the distance beyond which an image is abnormal."""

    patches: Tensor
    threshold: float


class PatchKNN(Inference):
    """Distance of the image's farthest patch to the nearest patches of normal train images; nothing is trained.

    The threshold is the given quantile of what the normal images have to the patches of the others: only the labels
    depend on it, the ranking of the images, and so the AUROC, does not.

    Source: Towards Total Recall in Industrial Anomaly Detection (Roth et al., CVPR 2022), section 3, on the tokens of a
    CLIP, without reweighting.
    """

    name = "patch-knn"
    summary = "distance to the nearest patches of normal images"
    equation = "a = max_p mean_k (1 - x_p.b_k),  b_k the k nearest patches of normal images"
    hyperparameters = {
        **SETTING,
        "neighbors": Hyperparameter(1, "k: nearest patches whose distance is averaged", low=1, high=1000),
        "bank": Hyperparameter(20_000, "patches of normal images that are kept, drawn at random", low=1, high=1e7),
        "quantile": Hyperparameter(1.0, "of the normal images' distances to each other: from there on an image is "
                                   "abnormal", high=1.0),
    }
    sees = "patches"
    wants_normal = True

    @property
    def fitted_on(self) -> str:
        return TRAIN

    def prepare(self, classifier: Classifier, task: Task, unlabelled: Queries | None = None) -> tuple[Task, Bank]:
        """unlabelled: normal train images alone."""
        if unlabelled is None or not len(unlabelled):
            raise MethodError("patch-knn compares with normal train images, and there are none: use a store whose "
                              "train split has some")
        return task, bank_of(patches_of(unlabelled), self.bank, self.neighbors, self.quantile)

    def infer(self, classifier: Classifier, queries: Queries, prepared: tuple[Task, Bank]) -> Inferred:
        (task, bank), normal = prepared, normal_class(classifier.class_names, self.normal)
        far = distances(patches_of(queries), bank.patches, self.neighbors)
        odds = task.logit_scale * (far.amax(dim=1) - bank.threshold)
        return Inferred(with_odds(log_scores(classifier, queries), normal, odds), abnormal=far)


def distances(patches: Tensor, bank: Tensor, neighbors: int = 1) -> Tensor:
    """Mean of 1 - cosine of patches (n, patches, dim) to the nearest of a bank (m, dim), all unit: (n, patches)."""
    rows, near = patches.flatten(0, 1), min(neighbors, len(bank))
    pieces = rows.split(max(1, _ELEMENTS // len(bank)))
    found = [1 - (piece @ bank.T).topk(near, dim=1).values.mean(dim=1) for piece in pieces]
    return torch.cat(found).view(patches.shape[:2])


def bank_of(patches: Tensor, size: int, neighbors: int = 1, quantile: float = 1.0) -> Bank:
    """The bank of normal images' patches (n, patches, dim); the threshold of one image alone is 0.

    Each image is compared with the kept patches of the others.
    """
    image = torch.arange(len(patches)).repeat_interleave(patches.shape[1])
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(1))[:size].sort().values
    kept, owner = patches.flatten(0, 1)[order], image[order]
    found = [distances(each[None], kept[owner != number], neighbors).amax() for number, each in enumerate(patches)
             if (owner != number).any()]
    return Bank(kept, float(torch.stack(found).quantile(quantile)) if found else 0.0)
