"""The methods, one file each. A new one joins by being named in `METHODS`."""

from __future__ import annotations

import sys

from onceclip.adapters.method import Method
from onceclip.adapters.methods.ape import APE
from onceclip.adapters.methods.ape_t import APET
from onceclip.adapters.methods.caps_adapter import CapsAdapter
from onceclip.adapters.methods.clap import CLAP
from onceclip.adapters.methods.clip_a_self import ClipASelf
from onceclip.adapters.methods.clip_adapter import ClipAdapter
from onceclip.adapters.methods.cocoop import CoCoOp
from onceclip.adapters.methods.coop import CoOp
from onceclip.adapters.methods.cpl import CPL
from onceclip.adapters.methods.cross_modal_adapter import CrossModalAdapter
from onceclip.adapters.methods.cross_modal_lp import CrossModalLinearProbe
from onceclip.adapters.methods.eco import ECO
from onceclip.adapters.methods.gda import GDA
from onceclip.adapters.methods.gda_em import GDAEM
from onceclip.adapters.methods.gopro import GOPro
from onceclip.adapters.methods.kgcoop import KgCoOp
from onceclip.adapters.methods.labelling_network import LabellingNetwork
from onceclip.adapters.methods.lafter_text import LaFTerText
from onceclip.adapters.methods.linear_probe import LinearProbe
from onceclip.adapters.methods.linear_probe_adamw import LinearProbeAdamW
from onceclip.adapters.methods.linear_probe_preproj import LinearProbePreproj
from onceclip.adapters.methods.lp_plus_plus import LPPlusPlus
from onceclip.adapters.methods.lpclip import LpClip
from onceclip.adapters.methods.meta_adapter import MetaAdapter
from onceclip.adapters.methods.mocoop import MoCoOp
from onceclip.adapters.methods.multi_modal_adapter import MultiModalAdapter
from onceclip.adapters.methods.pre import PRE
from onceclip.adapters.methods.prograd import ProGrad
from onceclip.adapters.methods.proker import ProKeR
from onceclip.adapters.methods.prolip import ProLIP
from onceclip.adapters.methods.prompt_weights import PromptWeights
from onceclip.adapters.methods.ranpac import RanPAC
from onceclip.adapters.methods.rapf import RAPF
from onceclip.adapters.methods.reco import RECO
from onceclip.adapters.methods.rla import RLA
from onceclip.adapters.methods.sgva import SgVA
from onceclip.adapters.methods.ship import SHIP
from onceclip.adapters.methods.ss_text import SSText
from onceclip.adapters.methods.stylip import StyLIP
from onceclip.adapters.methods.tai_dpt import TaIDPT
from onceclip.adapters.methods.taskres import TaskRes
from onceclip.adapters.methods.template_selection import TemplateSelection
from onceclip.adapters.methods.tip_adapter import TipAdapter
from onceclip.adapters.methods.tip_adapter_f import TipAdapterF
from onceclip.adapters.methods.tip_x import TipX
from onceclip.adapters.methods.upl import UPL
from onceclip.adapters.methods.vt_clip import VtClip
from onceclip.adapters.methods.wise_ft import WiseFT
from onceclip.adapters.methods.x_more import XMoRe
from onceclip.adapters.methods.zero_shot import ZeroShot
from onceclip.adapters.methods.zs_lp import ZeroShotLinearProbe
from onceclip.adapters.plugin import named_class, stored_class

__all__ = [
    "APE", "APET", "CLAP", "CPL", "ECO", "GDA", "GDAEM", "PRE", "RAPF", "RECO", "RLA", "SHIP", "UPL", "CapsAdapter",
    "ClipASelf", "ClipAdapter", "CoCoOp", "CoOp", "CrossModalAdapter", "CrossModalLinearProbe", "GOPro", "KgCoOp",
    "LPPlusPlus", "LaFTerText", "LabellingNetwork", "LinearProbe", "LinearProbeAdamW", "LinearProbePreproj", "LpClip",
    "MetaAdapter", "MoCoOp", "MultiModalAdapter", "ProGrad", "ProKeR", "ProLIP", "PromptWeights", "RanPAC", "SSText",
    "SgVA", "StyLIP", "TaIDPT", "TaskRes", "TemplateSelection", "TipAdapter", "TipAdapterF", "TipX", "VtClip", "WiseFT",
    "XMoRe", "ZeroShot", "ZeroShotLinearProbe",
]

METHODS: dict[str, type[Method]] = {method.name: method for method in (
    ZeroShot, TemplateSelection, PromptWeights,
    LinearProbe, LpClip, LinearProbePreproj, LinearProbeAdamW,
    ZeroShotLinearProbe, CLAP, LPPlusPlus, CrossModalLinearProbe, WiseFT,
    TaskRes,
    ClipAdapter, CrossModalAdapter, RLA, ProLIP,
    ClipASelf, MetaAdapter, MultiModalAdapter, SgVA, VtClip,
    TipAdapter, TipAdapterF, TipX, APE, APET,
    GDA, GDAEM, ProKeR, RanPAC, SSText,
    CoOp, KgCoOp, ProGrad, CPL, CoCoOp, GOPro, StyLIP, ECO, MoCoOp, PRE, UPL, SHIP, TaIDPT,
    LaFTerText, RAPF, LabellingNetwork, XMoRe, CapsAdapter, RECO,
)}


def method_class(name: str | type[Method]) -> type[Method]:
    """The method of a name, or the class that MODULE:CLASS names, which is imported; a class is given back.

    name: given by the user, never by a file.
    Raises UnknownName with the nearest name if there is none, MethodError for a class that cannot be imported, and for
    what is no method.

    Example:
        >>> onceclip.adapters.method_class("gda").__name__
        'GDA'
    """
    return named_class(name, Method, METHODS, "method")


def stored_method_class(name: str, where: str) -> type[Method]:
    """The method that a file names; one from outside only if its module is imported already. where: the file."""
    if ":" in name:
        return stored_class(name, Method, sys.modules, where)
    return method_class(name)
