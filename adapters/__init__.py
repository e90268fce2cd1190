"""The mathematics: torch tensors in, classifier out. No files but saved adapters, no encoder, no command line."""

from onceclip.adapters.classifier import Classifier, ClassifierModule, load_classifier
from onceclip.adapters.errors import AdapterFileError, MethodError, UnknownName
from onceclip.adapters.merging import best_merge, ensemble, merge
from onceclip.adapters.method import Method
from onceclip.adapters.methods import METHODS, method_class
from onceclip.adapters.methods.ape import APE
from onceclip.adapters.methods.ape_t import APET
from onceclip.adapters.methods.caps_adapter import CapsAdapter
from onceclip.adapters.methods.clap import CLAP
from onceclip.adapters.methods.clip_a_self import ClipASelf
from onceclip.adapters.methods.clip_adapter import ClipAdapter
from onceclip.adapters.methods.cross_modal_adapter import CrossModalAdapter
from onceclip.adapters.methods.cross_modal_lp import CrossModalLinearProbe
from onceclip.adapters.methods.gda import GDA
from onceclip.adapters.methods.gda_em import GDAEM
from onceclip.adapters.methods.labelling_network import LabellingNetwork
from onceclip.adapters.methods.lafter_text import LaFTerText
from onceclip.adapters.methods.linear_probe import LinearProbe
from onceclip.adapters.methods.linear_probe_adamw import LinearProbeAdamW
from onceclip.adapters.methods.linear_probe_preproj import LinearProbePreproj
from onceclip.adapters.methods.lp_plus_plus import LPPlusPlus
from onceclip.adapters.methods.lpclip import LpClip
from onceclip.adapters.methods.meta_adapter import MetaAdapter
from onceclip.adapters.methods.multi_modal_adapter import MultiModalAdapter
from onceclip.adapters.methods.proker import ProKeR
from onceclip.adapters.methods.prolip import ProLIP
from onceclip.adapters.methods.prompt_weights import PromptWeights
from onceclip.adapters.methods.ranpac import RanPAC
from onceclip.adapters.methods.rapf import RAPF
from onceclip.adapters.methods.rla import RLA
from onceclip.adapters.methods.sgva import SgVA
from onceclip.adapters.methods.ss_text import SSText
from onceclip.adapters.methods.taskres import TaskRes
from onceclip.adapters.methods.template_selection import TemplateSelection
from onceclip.adapters.methods.tip_adapter import TipAdapter
from onceclip.adapters.methods.tip_adapter_f import TipAdapterF
from onceclip.adapters.methods.tip_x import TipX
from onceclip.adapters.methods.vt_clip import VtClip
from onceclip.adapters.methods.wise_ft import WiseFT
from onceclip.adapters.methods.x_more import XMoRe
from onceclip.adapters.methods.zero_shot import ZeroShot
from onceclip.adapters.methods.zs_lp import ZeroShotLinearProbe
from onceclip.adapters.selection.automatic import fit_automatically
from onceclip.adapters.selection.selection import POLICIES, Selection, fit_all, fit_selected
from onceclip.adapters.support import SUPPORTS, SupportSource, support_source
from onceclip.adapters.task import Pool, Rows, Task
from onceclip.adapters.text import Text
from onceclip.adapters.training.trainable import Hyperparameter
from onceclip.adapters.transfer import transfer

__all__ = [
    "APE",
    "APET",
    "CLAP",
    "GDA",
    "GDAEM",
    "METHODS",
    "POLICIES",
    "RAPF",
    "RLA",
    "SUPPORTS",
    "AdapterFileError",
    "CapsAdapter",
    "Classifier",
    "ClassifierModule",
    "ClipASelf",
    "ClipAdapter",
    "CrossModalAdapter",
    "CrossModalLinearProbe",
    "Hyperparameter",
    "LPPlusPlus",
    "LaFTerText",
    "LabellingNetwork",
    "LinearProbe",
    "LinearProbeAdamW",
    "LinearProbePreproj",
    "LpClip",
    "MetaAdapter",
    "Method",
    "MethodError",
    "MultiModalAdapter",
    "Pool",
    "ProKeR",
    "ProLIP",
    "PromptWeights",
    "RanPAC",
    "Rows",
    "SSText",
    "Selection",
    "SgVA",
    "SupportSource",
    "Task",
    "TaskRes",
    "TemplateSelection",
    "Text",
    "TipAdapter",
    "TipAdapterF",
    "TipX",
    "UnknownName",
    "VtClip",
    "WiseFT",
    "XMoRe",
    "ZeroShot",
    "ZeroShotLinearProbe",
    "best_merge",
    "ensemble",
    "fit_all",
    "fit_automatically",
    "fit_selected",
    "load_classifier",
    "merge",
    "method_class",
    "support_source",
    "transfer",
]
