"""A fitted classifier as a torch module, for programs that are made of modules."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import one_hot

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.heads import Head, Kernel, KernelMachine, pack, unpack
from onceclip.adapters.task import EMBEDDING
from onceclip.adapters.unit import unit


class ClassifierModule(nn.Module):
    """A classifier that moves, compiles and exports as any module does; its tensors are buffers.

    Raw embeddings (rows, dim) go in; float32 logits and probabilities, both (rows, classes), come out. Rows are not
    looked at: NaN in gives NaN out.

    classifier: the fitted one; its tensors are copied.

    Example:
        >>> module = onceclip.ClassifierModule(onceclip.TipAdapter().fit(task))
        >>> logits, probabilities = module(embeddings)
        >>> logits.shape, probabilities.shape
        (torch.Size([5, 4]), torch.Size([5, 4]))
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.class_names = classifier.class_names
        self.temperature = classifier.temperature
        self._normalise = classifier.inputs == (EMBEDDING,)
        self._description, tensors = pack(without_branches(classifier.head))
        self._names = {name: name.replace(".", "_") for name in tensors}
        for name, values in tensors.items():
            self.register_buffer(self._names[name], values)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Score raw embeddings (rows, dim)."""
        head = self._head()
        rows = embeddings.to(head.dtype)
        logits = head(unit(rows) if self._normalise else rows).float()
        return logits, (logits / self.temperature).softmax(dim=-1)

    def _head(self) -> Head:
        return unpack(self._description, {name: getattr(self, buffer) for name, buffer in self._names.items()})


def without_branches(head: Head) -> Head:
    """The same head with nothing in it that looks at the values of tensors, which no exported program can do.

    A cache adds up its keys by a matrix (keys, classes) instead of by their labels.
    """
    if isinstance(head, Kernel):
        value = one_hot(head.label, head.classes).to(head.keys)
        return KernelMachine(head.keys, value if head.weight is None else value * head.weight.unsqueeze(1), head.beta)

    def inner(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(inner(each) for each in value)
        return without_branches(value) if isinstance(value, Head) else value

    return replace(head, **{field.name: inner(getattr(head, field.name))  # type: ignore[type-var]
                            for field in fields(head)})  # type: ignore[arg-type]
