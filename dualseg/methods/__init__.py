"""Training methods: one file per method, `base.py` what they share, `dual.py` the paper's."""

from dualseg.methods.base import LossTerm, SegmentationMethod
from dualseg.methods.dual import DualNetwork
from dualseg.methods.evaluation import NetworkEvaluation
from dualseg.methods.supervised import Supervised

__all__ = ["DualNetwork", "LossTerm", "NetworkEvaluation", "SegmentationMethod", "Supervised"]
