"""What a method does to patches on the device: pure functions of tensors (N, C, W, H, D), in float32.

None changes its argument or waits for the device, and all draw from torch's global generator, which a method seeds anew
in each iteration. The largest component is the exception: it waits. What `Augmentation` does to a batch, the host
draws.
"""

from dualseg.views.augmentation import Augmentation
from dualseg.views.boxes import contiguous_box, cutmix_boxes
from dualseg.views.components import keep_largest, largest_component
from dualseg.views.intensity import blur, brightness, contrast, gamma, low_resolution, noise, uniform
from dualseg.views.mixing import mixup, mixup_share, paste, with_next

__all__ = [
    "Augmentation",
    "blur",
    "brightness",
    "contiguous_box",
    "contrast",
    "cutmix_boxes",
    "gamma",
    "keep_largest",
    "largest_component",
    "low_resolution",
    "mixup",
    "mixup_share",
    "noise",
    "paste",
    "uniform",
    "with_next",
]
