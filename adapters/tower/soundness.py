"""Whether the tensors and the spec of a text tower fit each other: files say what they like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onceclip.adapters.tower.transformer import ACTIVATIONS

POOLINGS = ("end", "first", "last")


def require_sound(tensors: Mapping[str, Tensor], spec: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless a tower can be computed with; see `TextTower` for both."""
    rows, width = tensors["tokens"].shape
    (layers, hidden, _), positions = tensors["up.weight"].shape, len(tensors["positions"])
    dim = tensors["projection.weight"].shape[1] if "projection.weight" in tensors else width
    shapes = {
        "tokens": (rows, width), "token_ids": (rows,), "positions": (positions, width),
        "qkv.weight": (layers, 3 * width, width), "qkv.bias": (layers, 3 * width),
        "out.weight": (layers, width, width), "out.bias": (layers, width),
        "up.weight": (layers, hidden, width), "up.bias": (layers, hidden),
        "down.weight": (layers, width, hidden), "down.bias": (layers, width),
        **{f"{name}.{part}": (layers, width) for name in ("norm_1", "norm_2") for part in ("weight", "bias")},
        "norm.weight": (width,), "norm.bias": (width,), "projection.weight": (width, dim), "projection.bias": (dim,),
    }
    for name, value in tensors.items():
        if tuple(value.shape) != shapes[name]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not {shapes[name]}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{name} holds NaN or infinity")
    if missing := sorted({*shapes} - {*tensors, "projection.weight", "projection.bias"}):
        raise ValueError(f"it has no {missing[0]}")
    if not layers or width % spec["heads"] or spec["activation"] not in ACTIVATIONS or spec["pool"] not in POOLINGS:
        raise ValueError(f"{layers} blocks of width {width} cannot have {spec['heads']} heads, the activation "
                         f"{spec['activation']!r} and the pooling {spec['pool']!r}")
    if not (0 < spec["epsilon"] < 1 and 0 < spec["final_epsilon"] < 1 and isinstance(spec["causal"], bool)):
        raise ValueError("its epsilons or its mask are out of range")
    known = {*tensors["token_ids"].tolist()}
    ids = [spec["start"], spec["end"], [spec["fill"]], *spec["names"].values(), *spec["phrases"].values()]
    if any(each not in known for several in ids for each in several) or (spec["pool"] == "end" and not spec["end"]):
        raise ValueError("its token ids are not those of its rows")
    if any(not 0 <= spec["stems"][name] <= len(tail) for name, tail in spec["names"].items()):
        raise ValueError("its class names are longer than their tokens")
