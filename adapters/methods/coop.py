"""CoOp: the words in front of class names, learned as vectors."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from onceclip.adapters.errors import MethodError
from onceclip.adapters.heads import Head
from onceclip.adapters.method import Method, class_head
from onceclip.adapters.task import Task
from onceclip.adapters.tower import POSITIONS, TextTower
from onceclip.adapters.training.trainable import Hyperparameter, Value, keeping, recipe

TRAINING = {**recipe(learning_rate=2e-3, epochs=50, rates=(5e-4, 2e-3, 8e-3)), **keeping()}
DEVIATION = 0.02  # of a random start
TOWER_NEEDED = "the text tower (text --tower)"
CONTEXT = {
    "words": Hyperparameter("a photo of a", "words that the tokens start as; empty for random ones"),
    "length": Hyperparameter(16, "number of tokens where they start at random", low=1, high=1024),
    "position": Hyperparameter(POSITIONS[0], "where the tokens stand: in front of the class name, half on either side, "
                               "or at its end", choices=POSITIONS),
}
Prepared = TypeVar("Prepared", bound=Task)
PAPER: dict[str, Value] = {"optimizer": "sgd", "weight_decay": 5e-4, "schedule": "dassl", "batch_size": 32,
                           "epochs": 50}


class CoOp(Method):
    """Tokens in place of "a photo of a", trained through the frozen text tower; images stay embeddings.

    `w_c = unit(tower([start] v_1 .. v_M name_c . [end]))`, `logits = s x W^T`. Without `per_class` all classes share
    the tokens, which then serve other classes too. The fitted classifier is one linear head.

    Presets are the published configurations; their epochs are those for one shot (100 with 2 and 4, 200 with more).

    Source: Learning to Prompt for Vision-Language Models (Zhou et al., IJCV 2022), equations 2 and 3.

    Example:
        >>> onceclip.adapters.CoOp(epochs=2).fit(tower_task).logits(embeddings).shape
        torch.Size([5, 4])
    """

    name = "coop"
    summary = "learned words in front of class names"
    family = "prompt"
    equation = "logits = s x.unit(tower(v, name))'"
    needs = TOWER_NEEDED
    hyperparameters = {
        **CONTEXT,
        "per_class": Hyperparameter(False, "learn tokens of its own for every class"),
        **TRAINING,
    }
    presets = {"paper": {**PAPER, "words": "", "length": 16}, "paper-words": {**PAPER, "words": "a photo of a"}}
    transfers = True
    needs_text = False
    wants_tower = True
    shares_steps = False

    def prepare(self, task: Task) -> Task:
        return replace(task, tower=tower_of(task))

    def initial(self, prepared: Task, generator: torch.Generator) -> dict[str, Tensor]:
        context = self.start(prepared, generator)
        return {"context": context.repeat(prepared.classes, 1, 1) if self.values.get("per_class") else context}

    def start(self, prepared: Task, generator: torch.Generator) -> Tensor:
        """Start values of one context (tokens, width)."""
        return start_of(prepared, self.words, self.length, generator)

    def head(self, prepared: Task, parameters: dict[str, Tensor]) -> Head:
        return class_head(prepared, self.vectors(prepared, parameters))

    def vectors(self, prepared: Task, parameters: dict[str, Tensor]) -> Tensor:
        """Unit class vectors (classes, dim)."""
        return tower_of(prepared).encode(parameters["context"], self.position)

    def kept(self, prepared: Task, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return {} if self.values.get("per_class") else parameters

    def for_classes(self, task: Task, kept: dict[str, Tensor]) -> Head:
        if not kept:
            raise MethodError(f"this {self.name} has tokens of its own for every class: use per_class=false for what "
                              "serves other classes, too")
        return self.head(self.prepare(task), kept)


def tower_of(task: Task) -> TextTower:
    """The text tower of a task, for its classes.

    Raises MethodError if there is none, or it lacks a class.
    """
    if task.tower is None:
        raise MethodError("prompts are learned with the encoder's text tower and the task has none: write it into the "
                          "store with `onceclip text STORE --tower`")
    return task.tower if task.tower.classes == task.text.class_names else task.tower.of(task.text.class_names)


def extended(kind: type[Prepared], task: Task, **more: Tensor) -> Prepared:
    """A task of another kind, with its text tower for its classes and what the kind holds beside."""
    given = {field.name: getattr(task, field.name) for field in fields(Task)}
    return kind(**{**given, "tower": tower_of(task), **more})


def start_of(task: Task, words: str, length: int, generator: torch.Generator) -> Tensor:
    """Start values of a context: the tokens of some words, or `length` random ones where there are none."""
    tower = tower_of(task)
    if words.strip():
        return tower.phrase(words).clone()
    return (DEVIATION * torch.randn(length, tower.width, generator=generator, dtype=torch.float64)).to(tower.like)
