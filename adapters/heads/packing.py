"""Heads as JSON and named tensors: the one format of saving, exporting and stacking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.errors import AdapterFileError, MethodError
from onceclip.adapters.heads.answers import Answers, Controlled
from onceclip.adapters.heads.attention import CrossModal, VisualGuide
from onceclip.adapters.heads.base import Head
from onceclip.adapters.heads.kernel import FourierFeatures, Kernel, KernelMachine
from onceclip.adapters.heads.layers import Bottleneck, Perceptron, RandomFeatures, Rectified
from onceclip.adapters.heads.linear import Columns, Linear, ProbabilityBilinear, Projected, Quadratic, Sum
from onceclip.adapters.heads.neighbors import CaptionEnsemble, GraphLabels, Refined
from onceclip.adapters.heads.prompts import ConditionalPrompts, PromptMax, PromptWeighted, RoutedPrompts
from onceclip.adapters.plugin import full_name, is_plugin, stored_class

HEADS: dict[str, type[Head]] = {head.name: head for head in (
    Linear, Kernel, Bottleneck, Sum, Projected, PromptMax, PromptWeighted, Columns, Rectified, CrossModal, VisualGuide,
    KernelMachine, FourierFeatures, ProbabilityBilinear, Quadratic, ConditionalPrompts, RoutedPrompts, Perceptron,
    RandomFeatures, CaptionEnsemble, Answers, GraphLabels, Refined, Controlled,
)}
_RENAMED_FIELDS = {"renormalise": "renormalize"}  # spellings that saved adapters may have
_SAVED = (Tensor, tuple, str, bool, int, float, type(None))
_ROWS = 4  # on which a head from outside is tried
_APART = 1e-3  # of the largest logit


def pack(head: Head, prefix: str = "", copy: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split a head into a description and its named tensors; copies of them, unless told otherwise.

    A description has the head's class as its "type" and its fields by name; `to_json` makes it ready for a file.
    """
    description: dict[str, Any] = {"type": type(head)}
    tensors: dict[str, Tensor] = {}

    def put(name: str, value: Any) -> Any:
        if isinstance(value, Head):
            inner, more = pack(value, f"{prefix}{name}.", copy)
            tensors.update(more)
            return inner
        if isinstance(value, Tensor):
            # A copy, because safetensors refuses two names for one memory.
            tensors[prefix + name] = value.detach().cpu().contiguous().clone() if copy else value
            return {"tensor": prefix + name}
        if isinstance(value, tuple):
            return [put(f"{name}.{index}", item) for index, item in enumerate(value)]
        return value

    for field in fields(head):  # type: ignore[arg-type]
        description[field.name] = put(field.name, getattr(head, field.name))
    return description, tensors


def unpack(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Head:
    """Rebuild a head from what `pack` made."""

    def get(value: Any) -> Any:
        if isinstance(value, dict):
            return unpack(value, tensors) if "type" in value else tensors[value["tensor"]]
        return tuple(get(item) for item in value) if isinstance(value, list) else value

    head: Head = description["type"](**{name: get(value) for name, value in description.items() if name != "type"})
    return head


def to_json(description: Any) -> Any:
    """A description with names in place of classes, MODULE:CLASS for those from outside.

    Raises MethodError for a class that no name leads back to.
    """
    if isinstance(description, dict):
        return {name: to_json(value) for name, value in description.items()}
    if isinstance(description, list):
        return [to_json(value) for value in description]
    if not isinstance(description, type):
        return description
    if "<locals>" in description.__qualname__:
        raise MethodError(f"the head {full_name(description)} cannot be saved: define its class at the top of a module")
    return full_name(description)


def from_json(description: Any, modules: Sequence[str] = (), where: str = "the adapter") -> Any:
    """What `to_json` made, with classes again.

    modules: named by the user, whose heads may be taken. where: the file, for messages.
    Raises MethodError for a head of another module, AdapterFileError for one that this version does not know.
    """
    if isinstance(description, list):
        return [from_json(value, modules, where) for value in description]
    if not isinstance(description, dict):
        return description
    values = {_RENAMED_FIELDS.get(name, name): from_json(value, modules, where) for name, value in description.items()}
    if "type" in values:
        name = values["type"]
        if ":" in name:
            values["type"] = stored_class(name, Head, modules, where)
        elif name in HEADS:
            values["type"] = HEADS[name]
        else:
            raise AdapterFileError(f"{where} has a head of type {name!r}, which this version of onceclip does not "
                                   "know: install a newer version")
    return values


def parts_of(head: Head) -> Iterator[Head]:
    """A head and all that it is made of.

    Raises MethodError for one that is no dataclass, or that has what cannot be saved.
    """
    if not is_dataclass(head) or not isinstance(head, Head):
        raise MethodError(f"{full_name(type(head))} is no head, which is a dataclass that derives from Head: heads are "
                          "saved by their fields")
    yield head
    for field in fields(head):
        value = getattr(head, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Head):
                yield from parts_of(part)
            elif not isinstance(part, _SAVED):
                raise MethodError(f"{field.name} of the head {full_name(type(head))} is a {type(part).__name__}: heads "
                                  "are saved by their fields, which are tensors, heads, numbers, texts or tuples of "
                                  "these")


def plugin_heads(head: Head) -> list[type[Head]]:
    """Classes from outside of onceclip that a head is made of."""
    return [type(part) for part in parts_of(head) if is_plugin(type(part))]


@torch.no_grad()
def require_sound(head: Head, rows: Tensor, classes: int) -> None:
    """Try a head that is not onceclip's own, or whose method is not, on some rows (n, width), as it takes them.

    Raises MethodError if its logits are not (n, classes) or hold NaN, or those of a row depend on those beside it.
    """
    rows, name = rows[:_ROWS], f"the head {full_name(type(head))}"
    if head.dtype != rows.dtype:
        raise MethodError(f"{name} has tensors of {head.dtype}, and rows are {rows.dtype}: make them of that type, as "
                          "with .to(task.text.embedding)")
    if any(type(part).width is Head.width for part in parts_of(head)):
        raise MethodError(f"{name} defines no width: say how many columns its largest tensor in between has")
    batch = head(rows)
    if batch.shape != (len(rows), classes):
        raise MethodError(f"{name} gives {len(rows)} rows logits of shape {tuple(batch.shape)}: give "
                          f"({len(rows)}, {classes}), a column for each class")
    if batch.isnan().any():
        raise MethodError(f"{name} gives NaN for rows of the support: see what its tensors are made of")
    single = torch.cat([head(row) for row in rows.split(1)])
    allowed = _APART * max(1.0, float(batch.abs().max()))
    if batch.shape != single.shape or not torch.allclose(batch, single, rtol=0, atol=allowed):
        raise MethodError(f"{name} gives a row other logits beside others than alone: write it so that every row is "
                          "scored by itself")
