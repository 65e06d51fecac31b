"""One network, labels only: the lower bound with few labels, the upper bound with all."""

from typing import Any

import torch

from dualseg.errors import DualsegError
from dualseg.losses import supervised_ce, supervised_dice
from dualseg.methods.base import LossTerm, SegmentationMethod


class Supervised(SegmentationMethod):
    """CE + Dice of network `a` on the labeled samples. Arguments as `SegmentationMethod`.

    Raises:
        DualsegError: networks other than one named a.
    """

    term_names = ("supervised_ce", "supervised_dice")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if set(self.networks) != {"a"}:
            raise DualsegError(
                f"networks: method=supervised trains one network, named a, not {sorted(self.networks)}; "
                "choose networks=vnet or networks=resnet34."
            )

    def loss_terms(self, batch: dict[str, Any], iteration: int, max_iterations: int) -> list[LossTerm]:
        label = batch["label"]
        logits = self.networks["a"](batch["image"][: len(label)]).logits
        with torch.autocast(logits.device.type, enabled=False):
            log_p = logits.float().log_softmax(dim=1)
            return [
                LossTerm("supervised_ce", "a", supervised_ce(log_p, label), 1.0),
                LossTerm("supervised_dice", "a", supervised_dice(log_p.exp(), label), 1.0),
            ]
