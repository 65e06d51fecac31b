"""The benchmarks that `dualseg-prepare` knows. No torch here: a mistake must answer at once."""

from collections.abc import Sequence

from dualseg.data.brats2019 import MODALITIES
from dualseg.errors import DualsegError, nearest
from dualseg.preparation.base import Preparation
from dualseg.preparation.brats2019 import BraTS2019Preparation
from dualseg.preparation.left_atrium import LeftAtriumPreparation
from dualseg.preparation.pancreas_ct import PancreasPreparation

DATASETS: dict[str, type[Preparation]] = {
    "la": LeftAtriumPreparation,
    "pancreas": PancreasPreparation,
    "brats": BraTS2019Preparation,
}
FLAIR = ("flair",)  # the channel of BraTS-2019 that is used by default


def preparation_of(
    data: str, crop: str | None = None, modalities: Sequence[str] = FLAIR, regions: bool = False
) -> Preparation:
    """How a dataset is prepared.

    Args:
        data: one of `DATASETS`.
        crop: one of its `crops`; None: the first.
        modalities: brats: channels.
        regions: brats: whether unions of the classes are scored.

    Raises:
        DualsegError: an impossible value, or one that belongs to another dataset.
    """
    if data not in DATASETS:
        raise DualsegError(f"data={data}: choose from {', '.join(DATASETS)}.{nearest(data, list(DATASETS))}")
    kind = DATASETS[data]
    if crop is not None and crop not in kind.crops:
        why = "; BraTS is cropped to the brain, which needs no label" if data == "brats" else ""
        raise DualsegError(f"crop={crop}: choose from {', '.join(kind.crops)}{why}.")
    chosen = next((one for one in kind.crops if one == crop), kind.crops[0])
    if kind is not BraTS2019Preparation:
        for key, given in (("modalities", tuple(modalities) != FLAIR), ("regions", regions)):
            if given:
                raise DualsegError(f"{key}: belongs to data=brats.")
        return kind(chosen)
    if not {*modalities} <= {*MODALITIES} or len({*modalities}) < len(modalities):
        raise DualsegError(f"modalities=[{','.join(modalities)}]: give some of [{','.join(MODALITIES)}], each once.")
    return BraTS2019Preparation(chosen, tuple(modalities), regions)
