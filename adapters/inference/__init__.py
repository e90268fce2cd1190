"""How a fitted classifier reads rows: strategies, one file each. A new one joins by being named in `INFERENCES`."""

from __future__ import annotations

import sys

from onceclip.adapters.inference.anovl import AnoVL
from onceclip.adapters.inference.base import Inductive, Inference, Inferred, Queries, queries_of
from onceclip.adapters.inference.conf_ot import ConfOT
from onceclip.adapters.inference.crops import Crops
from onceclip.adapters.inference.dmn import DMN
from onceclip.adapters.inference.dn import DistributionNormalization
from onceclip.adapters.inference.inmap import InMaP
from onceclip.adapters.inference.mta import MTA
from onceclip.adapters.inference.onzeta import OnZeta
from onceclip.adapters.inference.patch_knn import PatchKNN
from onceclip.adapters.inference.patch_max import PatchMax
from onceclip.adapters.inference.prior_bias import PriorBias
from onceclip.adapters.inference.reclip import ReCLIP
from onceclip.adapters.inference.stata import StatA
from onceclip.adapters.inference.tda import TDA
from onceclip.adapters.inference.tps import TPS
from onceclip.adapters.inference.tpt import TPT, DiffTPT
from onceclip.adapters.inference.transclip import TransCLIP
from onceclip.adapters.inference.zero import Zero
from onceclip.adapters.inference.zlap import ZLaP
from onceclip.adapters.plugin import named_class, stored_class

__all__ = ["INFERENCES", "Inductive", "Inference", "Inferred", "Queries", "inference_class", "queries_of",
           "stored_inference_class"]

INFERENCES: dict[str, type[Inference]] = {inference.name: inference for inference in (
    PriorBias, DistributionNormalization, ConfOT, InMaP,
    StatA, TransCLIP, ZLaP, ReCLIP,
    Zero, MTA, TPS, TPT, DiffTPT, Crops,
    TDA, DMN, OnZeta,
    AnoVL, PatchMax, PatchKNN,
)}


def inference_class(name: str | type[Inference]) -> type[Inference]:
    """The strategy of a name, or the class that MODULE:CLASS names, which is imported; a class is given back.

    name: given by the user, never by a file.
    Raises UnknownName with the nearest name if there is none, MethodError for a class that cannot be imported, and for
    what is no strategy.

    Example:
        >>> from onceclip.adapters.inference import inference_class
        >>> inference_class("dn").sees
        'set'
    """
    return named_class(name, Inference, INFERENCES, "inference strategy")  # type: ignore[type-abstract]


def stored_inference_class(name: str, where: str) -> type[Inference]:
    """The strategy that a file names; one from outside only if its module is imported already. where: the file."""
    if ":" in name:
        return stored_class(name, Inference, sys.modules, where)  # type: ignore[type-abstract]
    return inference_class(name)
