"""A fitted classifier put to use on other classes, without training."""

from __future__ import annotations

import torch

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.ensembles import MERGED
from onceclip.adapters.errors import MethodError
from onceclip.adapters.inference.base import INFERENCE
from onceclip.adapters.method import Method
from onceclip.adapters.methods import stored_method_class
from onceclip.adapters.selection.automatic import AVERAGES
from onceclip.adapters.task import Task


def wants_tower(method: str) -> bool:
    """Whether a classifier of a method, by its name, is carried over to other classes with the text tower."""
    return method not in AVERAGES and stored_method_class(method, "this adapter").wants_tower


def transfer(classifier: Classifier, task: Task) -> Classifier:
    """Make the classifier of a task's classes out of one that was fitted on others; nothing is trained.

    task: text of the classes, logit scale and projections of the same encoder. Its support may be empty; only
        meta-adapter looks at it, and takes the text alone where there is none.
    Raises MethodError if the method serves the classes alone that it was fitted on, or widths differ.

    Example: `transfer(RLA().fit(base), new).predict(embeddings)`
    """
    if INFERENCE in classifier.hyperparameters:
        raise MethodError(f"what {classifier.hyperparameters[INFERENCE]} made of the adapter belongs to its classes: "
                          "transfer the adapter itself")
    if classifier.method in AVERAGES:
        raise MethodError("an average of several methods serves the classes alone that it was fitted on: use a method "
                          "that serves other classes, too (`onceclip methods` says which)")
    if MERGED in classifier.hyperparameters:
        raise MethodError(f"a merge of {classifier.method} and {classifier.hyperparameters[MERGED]} serves its own "
                          "classes alone: transfer the two, then merge them")
    known = stored_method_class(classifier.method, "this adapter")
    method = known(**known.stored_values(classifier.hyperparameters))
    if not method.transfers:
        raise MethodError(f"what {method.name} learns belongs to the classes that it was fitted on: use a method that "
                          "serves other classes, too (`onceclip methods` says which), or fit it on these")
    if not classifier.parameters and (method.trained or type(method).kept is not Method.kept):
        raise MethodError(f"this {method.name} was saved without what it needs for other classes: fit it again")
    if task.width(method.inputs) != classifier.dim:
        raise MethodError(f"the text has {task.dim} dimensions and the adapter takes rows of {classifier.dim}: embed "
                          "the prompts with the adapter's encoder")
    kept = {name: value.to(task.text.embedding if value.is_floating_point() else task.device)
            for name, value in classifier.parameters.items()}
    with torch.no_grad():
        head = method.for_classes(task, kept)
    # A temperature was fitted on images of the other classes, and says nothing of these.
    return classifier.with_head(head, class_names=task.text.class_names)
