"""Loss terms: pure tensor functions, one idea per file; float32, on log-softmax (method.md section 1)."""

from dualseg.losses.blocks import block_mean
from dualseg.losses.contrast import Drawn, Prototypes, class_prototypes, contrast, draw_voxels
from dualseg.losses.cosine import cosine
from dualseg.losses.cross_pseudo import cross_pseudo
from dualseg.losses.entropy_filtered import entropy, entropy_filtered, fuse, linear_quantile, reliable_voxels
from dualseg.losses.prototype_distance import prototype_distance
from dualseg.losses.rectification import confident_disagreement, rectification
from dualseg.losses.region import region_ce, region_dice
from dualseg.losses.supervised import supervised_ce, supervised_dice
from dualseg.losses.uncertainty import kl_divergence, uncertainty
from dualseg.losses.voxel_contrast import voxel_contrast

__all__ = [
    "Drawn",
    "Prototypes",
    "block_mean",
    "class_prototypes",
    "confident_disagreement",
    "contrast",
    "cosine",
    "cross_pseudo",
    "draw_voxels",
    "entropy",
    "entropy_filtered",
    "fuse",
    "kl_divergence",
    "linear_quantile",
    "prototype_distance",
    "rectification",
    "region_ce",
    "region_dice",
    "reliable_voxels",
    "supervised_ce",
    "supervised_dice",
    "uncertainty",
    "voxel_contrast",
]
