"""What the loss terms need of one network's output."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor
from torch.nn import functional as F

from dualseg.networks import SCALE, SegmentationOutput


@dataclass(frozen=True)
class View:
    """One network's output on N patches, float32.

    Attributes:
        log_p: (N, K, W, H, D) log-softmax of the logits.
        features: (N, F, W, H, D), as the network gives them.
        logits: (N, K, W, H, D), as the network gives them.
        others: further outputs of the network by name, (N, ...) each.
    """

    log_p: Tensor
    features: Tensor
    logits: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, output: SegmentationOutput) -> "View":
        return cls(output.logits.float().log_softmax(dim=1), output.features, output.logits, output.others)

    @cached_property
    def p(self) -> Tensor:
        """(N, K, W, H, D) probabilities."""
        return self.log_p.exp()

    @cached_property
    def predicted(self) -> Tensor:
        """argmax over classes, (N, W, H, D) int64."""
        return self.p.max(dim=1).indices  # on the CPU 15 times faster along a strided axis than argmax

    @cached_property
    def entropy(self) -> Tensor:
        """-sum p log p over classes in nats, (N, W, H, D), with gradient."""
        return -(self.p * self.log_p).sum(dim=1)

    @cached_property
    def coarser(self) -> "tuple[View, ...]":
        """Views of the network's coarser logits, finest first; their features are those of this one."""
        logits = [tensor for name, tensor in self.others.items() if name.startswith(SCALE)]
        return tuple(View.of(SegmentationOutput(one, self.features)) for one in logits)

    def __len__(self) -> int:
        return len(self.log_p)

    @cached_property
    def scales(self) -> "tuple[View, ...]":
        """This view, and one of the logits of each further scale: those of `others` whose name begins with `logits`,
        enlarged to its size."""
        size = self.logits.shape[2:]
        coarse = [logits for name, logits in self.others.items() if name.startswith("logits")]
        enlarged = [F.interpolate(logits.float(), size, mode="trilinear") for logits in coarse]
        return (self, *(View.of(SegmentationOutput(logits, self.features)) for logits in enlarged))

    def split(self, *sizes: int) -> "tuple[View, ...]":
        """Parts of so many patches, one after another; the sizes add up to all.

        `labeled, unlabeled = view.split(n, len(view) - n)`
        """
        lengths = list(sizes)
        own = (self.log_p, self.p, self.features, self.logits)
        log_p, p, features, logits = (tensor.split(lengths) for tensor in own)
        others = {name: tensor.split(lengths) for name, tensor in self.others.items()}
        parts = []
        for k in range(len(lengths)):
            part = View(log_p[k], features[k], logits[k], {name: tensors[k] for name, tensors in others.items()})
            part.__dict__["p"] = p[k]  # computed once, for all parts
            parts.append(part)
        return tuple(parts)
