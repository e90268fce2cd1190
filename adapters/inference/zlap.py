"""ZLaP: labels spread over a graph of images and class vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads.neighbors import LEAST, GraphLabels
from onceclip.adapters.inference.base import (
    QUERY,
    Inductive,
    Inferred,
    Queries,
    fit_setting,
    prototypes,
    replaced,
    require_embeddings,
    similarities,
)
from onceclip.adapters.inference.graph import nearest, normalized, propagated, sparse, symmetric
from onceclip.adapters.task import Task
from onceclip.adapters.training.trainable import Hyperparameter

GRAPH = {
    "neighbors": Hyperparameter(5, "nearest images, itself among them, and nearest classes of each image", low=1,
                                 high=1000),
    "alpha": Hyperparameter(0.3, "how far labels spread", high=0.9999),
}


class ZLaP(Inductive):
    """Every class is a node beside the images; its label spreads to all nodes over edges of near ones.

    Edges lead from an image to its nearest images, with their cosines, and to its nearest classes, with `similarities`
    to the power gamma. The answer's softmax are the scores, divided by their sum. A row that is no node, as all are
    where the graph is that of train images, reads the scores of its nearest nodes by the weights of such edges.

    Source: Label Propagation for Zero-shot Classification with Vision-Language Models (Stojnic et al., CVPR 2024),
    equations 2 to 6, and its inductive form; the system is solved to 1e-6, and to 1e-10 in float64.
    """

    name = "zlap"
    summary = "labels spread over a graph of images and classes"
    source = "Stojnic et al., Label Propagation for Zero-shot Classification with Vision-Language Models, CVPR 2024"
    equation = "logits = ln F,  (I - alpha D^-1/2 A D^-1/2) F = one-hot classes,  A_ic = max(cos_ic, 0)^gamma"
    hyperparameters = {**GRAPH, "gamma": Hyperparameter(5.0, "power of the similarities of images and classes",
                                                        high=100.0), **fit_setting(QUERY)}

    def infer(self, classifier: Classifier, queries: Queries, prepared: Classifier | Task) -> Inferred:
        if isinstance(prepared, Classifier):
            return super().infer(classifier, queries, prepared)
        scores, steps = self.solve(classifier, queries, prepared)
        left = None if queries.inputs is not None else self._left_behind(classifier, queries, prepared, scores)
        return Inferred(scores[scores.shape[1]:].clamp_min(LEAST).log(), left, {"solver_steps": steps})

    def fit(self, classifier: Classifier, rows: Queries, task: Task) -> Classifier:
        require_embeddings(self, classifier, rows)
        return self._left_behind(classifier, rows, task, self.solve(classifier, rows, task)[0])

    def _left_behind(self, classifier: Classifier, rows: Queries, task: Task, scores: Tensor) -> Classifier:
        return replaced(self, classifier, GraphLabels(
            classifier.head, rows.embedding, scores, prototypes(classifier, task).mean(dim=0), task.logit_scale,
            self.neighbors, self.gamma))

    def solve(self, classifier: Classifier, queries: Queries, task: Task) -> tuple[Tensor, int]:
        """Scores (classes + n, classes) of the classes and the rows, and the solver's steps."""
        similarity = similarities(classifier, queries, task)
        classes, rows = similarity.shape[1], queries.embedding
        # The image itself is among its neighbours, as in the authors' code, and drops out with the diagonal.
        image = nearest(rows, self.neighbors - 1)
        value, index = similarity.topk(min(self.neighbors, classes), dim=1)
        graph = block_graph(image[0].clamp_min(0), image[1] + classes, value.clamp_min(0) ** self.gamma, index, classes)
        return spread(graph, classes, self.alpha, self.progress)


def block_graph(image: Tensor, image_index: Tensor, to_class: Tensor, class_index: Tensor, classes: int) -> Tensor:
    """`A + A^T` (classes + n, classes + n), sparse, of edges from images (n, k) to other nodes, classes first."""
    value, index = torch.cat([image, to_class], dim=1), torch.cat([image_index, class_index], dim=1)
    nodes = classes + len(value)
    edges = sparse(value, index, nodes).coalesce()
    row, column = edges.indices()
    return symmetric(torch.sparse_coo_tensor(torch.stack([row + classes, column]), edges.values(), (nodes, nodes),
                                             check_invariants=False))


def spread(graph: Tensor, classes: int, alpha: float, progress: object) -> tuple[Tensor, int]:
    """Scores (nodes, classes) of all nodes of a graph whose first ones are the classes, and the solver's steps."""
    seeds = torch.eye(len(graph), classes, dtype=graph.dtype, device=graph.device)
    tolerance = 1e-6 if graph.dtype == torch.float32 else 1e-10
    return propagated(normalized(graph), seeds, alpha, tolerance, progress)  # type: ignore[arg-type]
