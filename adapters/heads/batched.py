"""Scoring many heads on the same rows: what they share is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.heads import Head, pack, unpack
from onceclip.adapters.heads.kernel import batched_cache_logits, same_cache
from onceclip.adapters.heads.packing import plugin_heads


def elements_at_once(device: str) -> int:
    """Elements of the largest tensor in between while rows are scored: what caches keep, or keeps a GPU busy."""
    return 2**20 if device == "cpu" else 2**24


_LOGITS = 2**24  # that are held at once: 64 MiB in float32


def row_pieces(rows: Any, classes: int) -> Iterator[Any]:
    """Rows (n, width), a tensor or an array, in pieces whose logits (rows, classes) do not take much memory."""
    step = max(1, _LOGITS // max(classes, 1))
    return (rows[start:start + step] for start in range(0, max(len(rows), 1), step))


def join(heads: Sequence[Head]) -> Head | None:
    """One head with a leading axis of runs for heads of the same structure, or None if they differ in it.

    Nor for heads from outside, which need not know of such an axis. Tensors that are one and the same in all heads stay
    single, so that a product with them is made once.
    """
    if len(heads) == 1:
        return heads[0]
    if plugin_heads(heads[0]):
        return None
    packed = [pack(head, copy=False) for head in heads]
    tensors: dict[str, Tensor] = {}
    try:
        description = _join([description for description, _ in packed], [each for _, each in packed], tensors, "number")
    except ValueError:
        return None
    return unpack(description, tensors)


def _join(values: Sequence[Any], tensors: Sequence[dict[str, Tensor]], joined: dict[str, Tensor], name: str) -> Any:
    """What all heads have at one place of their descriptions. Raises ValueError if it cannot be one thing."""
    first = values[0]
    if isinstance(first, dict) and "tensor" in first:
        parts = [each[value["tensor"]] for each, value in zip(tensors, values, strict=True)]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(name)
        same = all(part is parts[0] or _same_memory(part, parts[0]) for part in parts)
        if not same and not parts[0].is_floating_point() and not all(torch.equal(part, parts[0]) for part in parts):
            raise ValueError(name)
        joined[first["tensor"]] = parts[0] if same or not parts[0].is_floating_point() else torch.stack(parts)
        return first
    if isinstance(first, dict):
        if any(value.keys() != first.keys() for value in values):
            raise ValueError(name)
        return {key: _join([value[key] for value in values], tensors, joined, f"{name}.{key}") for key in first}
    if isinstance(first, list):
        if any(len(value) != len(first) for value in values):
            raise ValueError(name)
        return [_join([value[place] for value in values], tensors, joined, f"{name}.{place}")
                for place in range(len(first))]
    if all(value == first for value in values):
        return first
    if not all(isinstance(value, float) for value in values):
        raise ValueError(name)
    like = next(tensor for tensor in tensors[0].values() if tensor.is_floating_point())
    joined[name] = torch.tensor(values, dtype=like.dtype, device=like.device)
    return {"tensor": name}


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


@torch.no_grad()
def batched_logits(heads: Sequence[Head], rows: Tensor) -> Iterator[Tensor]:
    """Logits of every head on the same rows, one head after the other: float32 (rows, classes).

    rows: as the heads take them, unit embeddings mostly.
    """
    if len(heads) > 1 and same_cache(heads):
        yield from batched_cache_logits(heads, rows)  # type: ignore[arg-type]
        return
    width = max(max(head.width for head in heads), rows.shape[1])
    most = max(1, elements_at_once(rows.device.type) // (width * max(len(rows), 1)))
    for start in range(0, len(heads), most):
        group = heads[start:start + most]
        joined = join(group)
        if joined is None:
            yield from (_in_pieces(head, rows, max(head.width, rows.shape[1])) for head in group)
        else:
            logits = _in_pieces(joined, rows, width * len(group))
            yield from logits if logits.ndim == 3 else (logits for _ in group)


def _in_pieces(head: Head, rows: Tensor, width: int) -> Tensor:
    """Logits of a head whose largest tensor in between has so many columns."""
    step = max(1, elements_at_once(rows.device.type) // width)
    first = head(rows[:step]).float()
    if len(rows) <= step:
        return first
    logits = first.new_empty((*first.shape[:-2], len(rows), first.shape[-1]))  # many classes leave no room for two
    logits[..., :step, :] = first
    for place in range(step, len(rows), step):
        logits[..., place:place + step, :] = head(rows[place:place + step])
    return logits
