"""Training methods: one file per method, `base.py` what they share, `dual.py` the paper's."""

from dualseg.methods.averages import Average
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.bcp import BidirectionalCopyPaste
from dualseg.methods.cps import CrossPseudoSupervision
from dualseg.methods.dual import DualNetwork, TwoNetworks
from dualseg.methods.dual_isbi import DualISBI
from dualseg.methods.dual_mix import DualMix
from dualseg.methods.erda import ERDA
from dualseg.methods.evaluation import NetworkEvaluation
from dualseg.methods.extra import ExtraTerm
from dualseg.methods.guided_contrast import GuidedContrast
from dualseg.methods.mean_teacher import MeanTeacher
from dualseg.methods.rcps import RCPS
from dualseg.methods.semsim import SemSim
from dualseg.methods.solo_mix import SoloMix
from dualseg.methods.ssl_contrastive import SSLContrastive
from dualseg.methods.supervised import Supervised
from dualseg.methods.terms import LossTerm, Term, Time
from dualseg.methods.view import View

__all__ = [
    "ERDA",
    "RCPS",
    "Average",
    "BidirectionalCopyPaste",
    "CrossPseudoSupervision",
    "DualISBI",
    "DualMix",
    "DualNetwork",
    "ExtraTerm",
    "GuidedContrast",
    "LossTerm",
    "MeanTeacher",
    "NetworkEvaluation",
    "SSLContrastive",
    "SegmentationMethod",
    "SemSim",
    "SoloMix",
    "Supervised",
    "Term",
    "Time",
    "TwoNetworks",
    "View",
]
