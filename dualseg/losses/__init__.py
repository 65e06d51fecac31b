"""Loss terms: pure tensor functions, one idea per file; float32, on log-softmax (method.md section 1)."""

from dualseg.losses.blocks import block_centre, block_mean
from dualseg.losses.contrast import Drawn, Prototypes, class_prototypes, contrast, draw_voxels
from dualseg.losses.cosine import cosine
from dualseg.losses.cross_pseudo import cross_pseudo
from dualseg.losses.entropy_filtered import entropy, entropy_filtered, fuse, linear_quantile, reliable_voxels
from dualseg.losses.masked_dice import masked_dice
from dualseg.losses.prototype_distance import prototype_distance
from dualseg.losses.rectification import confident_disagreement, rectification
from dualseg.losses.region import region_ce, region_dice
from dualseg.losses.scales import label_at, over_scales
from dualseg.losses.similarity import agreement, class_log_probabilities, patch_prototypes, refined, similarities
from dualseg.losses.supervised import supervised_ce, supervised_dice
from dualseg.losses.uncertainty import kl_divergence, uncertainty
from dualseg.losses.voxel_contrast import voxel_contrast

__all__ = [
    "Drawn",
    "Prototypes",
    "agreement",
    "block_centre",
    "block_mean",
    "class_log_probabilities",
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
    "label_at",
    "linear_quantile",
    "masked_dice",
    "over_scales",
    "patch_prototypes",
    "prototype_distance",
    "rectification",
    "refined",
    "region_ce",
    "region_dice",
    "reliable_voxels",
    "similarities",
    "supervised_ce",
    "supervised_dice",
    "uncertainty",
    "voxel_contrast",
]
