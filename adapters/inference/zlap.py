"""ZLaP: labels spread over a graph of images and class vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads.neighbors import LEAST, GraphLabels
from onceclip.adapters.inference.base import QUERY, Joint, Queries, fit_setting, prototypes, similarities
from onceclip.adapters.inference.graph import nearest, normalized, propagated, sparse, symmetric
from onceclip.adapters.task import Task
from onceclip.adapters.training.loop import Progress
from onceclip.adapters.training.trainable import Hyperparameter


class ZLaP(Joint):
    """Every class is a node beside the images; its label spreads to all nodes over edges of near ones.

    Edges lead from an image to its nearest images, with their cosines, and to its nearest classes, with `similarities`
    to the power gamma. The answer's softmax are the scores, divided by their sum. A row that is no node, as all are
    where the graph is that of train images, reads the scores of its nearest nodes by the weights of such edges.

    Source: Label Propagation for Zero-shot Classification with Vision-Language Models (Stojnic et al., CVPR 2024),
    equations 2 to 6, and its inductive form; the system is solved to 1e-6, and to 1e-10 in float64.
    """

    name = "zlap"
    summary = "labels spread over a graph of images and classes"
    equation = "logits = ln F,  (I - alpha D^-1/2 A D^-1/2) F = one-hot classes,  A_ic = max(cos_ic, 0)^gamma"
    hyperparameters = {
        "neighbors": Hyperparameter(5, "nearest images, itself among them, and nearest classes of each image", low=1,
                                    high=1000),
        "alpha": Hyperparameter(0.3, "how far labels spread", high=0.9999),
        "gamma": Hyperparameter(5.0, "power of the similarities of images and classes", high=100.0),
        **fit_setting(QUERY),
    }
    replaces = True

    def solve(self, classifier: Classifier, queries: Queries, task: Task) -> tuple[Tensor, GraphLabels, dict[str, Any]]:
        similarity = similarities(classifier, queries, task)
        classes, rows = similarity.shape[1], queries.embedding
        # The image itself is among its neighbours, as in the authors' code, and drops out with the diagonal.
        image = nearest(rows, self.neighbors - 1)
        value, index = similarity.topk(min(self.neighbors, classes), dim=1)
        graph = block_graph(image[0].clamp_min(0), image[1] + classes, value.clamp_min(0) ** self.gamma, index, classes)
        scores, steps = spread(graph, classes, self.alpha, self.progress)
        head = GraphLabels(classifier.head, rows, scores, prototypes(classifier, task).mean(dim=0), task.logit_scale,
                           self.neighbors, self.gamma)
        return scores[classes:].clamp_min(LEAST).log(), head, {"solver_steps": steps}


def block_graph(image: Tensor, image_index: Tensor, to_class: Tensor, class_index: Tensor, classes: int) -> Tensor:
    """`A + A^T` (classes + n, classes + n), sparse, of edges from images (n, k) to other nodes, classes first."""
    value, index = torch.cat([image, to_class], dim=1), torch.cat([image_index, class_index], dim=1)
    nodes = classes + len(value)
    edges = sparse(value, index, nodes).coalesce()
    row, column = edges.indices()
    return symmetric(torch.sparse_coo_tensor(torch.stack([row + classes, column]), edges.values(), (nodes, nodes),
                                             check_invariants=False))


def spread(graph: Tensor, classes: int, alpha: float, progress: Progress) -> tuple[Tensor, int]:
    """Scores (nodes, classes) of all nodes of a graph whose first ones are the classes, and the solver's steps."""
    seeds = torch.eye(len(graph), classes, dtype=graph.dtype, device=graph.device)
    tolerance = 1e-6 if graph.dtype == torch.float32 else 1e-10
    return propagated(normalized(graph), seeds, alpha, tolerance, progress)
