"""Anomaly detection among the classes of a classifier: one of them is the normal one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from onceclip.adapters.errors import MethodError, unknown
from onceclip.adapters.training.trainable import Hyperparameter

NORMAL = ("normal", "good", "ok", "nominal")  # names that need not be said
SETTING = {"normal": Hyperparameter("", f"name of the class of images without a defect; by itself one that is called "
                                    f"{', '.join(NORMAL)}")}


def normal_class(names: Sequence[str], name: str = "") -> int:
    """Position of the normal class among the class names.

    name: of it; empty for the one that has a usual name.
    Raises MethodError where none is meant.
    """
    if name:
        if name not in names:
            raise MethodError(unknown("class", name, names))
        return list(names).index(name)
    found = [place for place, each in enumerate(names) if each.lower() in NORMAL]
    if len(found) != 1:
        raise MethodError(f"which class is the normal one? None, or more than one, is called {', '.join(NORMAL)}: name "
                          f"it with normal=NAME; there are: {', '.join(names)}")
    return found[0]


def anomaly_score(logits: Tensor, normal: int) -> Tensor:
    """Log-odds of all other classes together against the normal one, of logits (n, classes): (n,)."""
    others = torch.cat([logits[:, :normal], logits[:, normal + 1:]], dim=1)
    return others.logsumexp(dim=1) - logits[:, normal]


def with_odds(logits: Tensor, normal: int, odds: Tensor) -> Tensor:
    """Log-probabilities (n, classes) whose `anomaly_score` is the given log-odds (n,).

    The classes other than the normal one share the rest as in the logits (n, classes).
    """
    others = logits.clone()
    others[:, normal] = -torch.inf
    found = others.log_softmax(dim=1) + logsigmoid(odds)[:, None]
    found[:, normal] = logsigmoid(-odds)
    return found
