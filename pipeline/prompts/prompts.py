"""The sentences of all classes, and what made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onceclip.pipeline.prompts.descriptions import Descriptions


@dataclass(frozen=True)
class Prompts:
    """The sentences of all classes.

    sentences: all of them, class by class. class_ptr: (classes + 1,) where each class begins and ends.
    template_id: (sentences,) position in the source's "templates", or -1 for what is of one class alone.
    source: JSON values that say what made them.
    """

    classes: tuple[str, ...]
    sentences: tuple[str, ...]
    class_ptr: np.ndarray
    template_id: np.ndarray
    source: dict[str, Any]

    def of_class(self, name: str) -> tuple[str, ...]:
        """The sentences of one class."""
        place = self.classes.index(name)
        return self.sentences[self.class_ptr[place]:self.class_ptr[place + 1]]


def build_prompts(phrases: Mapping[str, str], templates: Sequence[str], descriptions: Descriptions | None = None,
                  **origin: Any) -> Prompts:
    """Put every class's phrase into every template, then add what a file says of the class.

    A sentence that a class has already is not added again: it would count twice in every mean.

    phrases: what prompts call each class. origin: further JSON values for the source.
    Raises PromptError if the descriptions are not of these classes.
    """
    told = descriptions.sentences(phrases) if descriptions else {}
    sentences: list[str] = []
    template_id: list[int] = []
    pointer = [0]
    repeated = 0
    for name, phrase in phrases.items():
        made = [template.replace("{}", phrase) for template in templates]
        own = [line for line in dict.fromkeys(told.get(name, ())) if line not in made]
        repeated += len(told.get(name, ())) - len(own)
        sentences += made + own
        template_id += [*range(len(made)), *[-1] * len(own)]
        pointer.append(len(sentences))
    source: dict[str, Any] = {"templates": list(templates), "phrases": dict(phrases), **origin}
    if descriptions:
        source["file"] = {"name": descriptions.name, "digest": descriptions.digest,
                          "form": descriptions.form or "sentences", "repeated": repeated}
    return Prompts(tuple(phrases), tuple(sentences), np.array(pointer, np.int64), np.array(template_id, np.int32),
                   source)
