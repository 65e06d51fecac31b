"""ERDA (Tang et al., NeurIPS 2023, arXiv:2305.15832) as a term of any method."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualseg.arguments import at_least, fraction, positive, switch
from dualseg.data.batch import Batch
from dualseg.losses.masked import masked_mean
from dualseg.losses.ranks import sum_over_ranks
from dualseg.methods.extra import ExtraTerm, Host, voxel_rows
from dualseg.methods.terms import LossTerm, Ramp, Time

DRAWN = 32_768  # voxels of the labeled and as many of the unlabeled patches; all of them, where they are fewer


class ERDA(ExtraTerm):
    """lambda H(p) + KL(p || q) on the unlabeled patches, p a pseudo-label that learns as well (Tang et al., 2023).

    q = softmax(z) is the network's prediction, p = softmax_c(cos(g(f), c_c) / T) the pseudo-label: g is a perceptron of
    two layers on the features f, c_c the moving mean of g(f) over the labeled voxels of class c (no gradient). With
    lambda = 1 the term is -sum_c p_c log q_c. Its gradient reaches z (q - p), and through p the features and g. Each
    network of a method has a g and prototypes of its own; averaged networks do not get the term.

    Differences: DRAWN voxels, drawn in each iteration, stand for all. A class that a batch lacks keeps its prototype
    (in the public code of the weakly supervised runs it falls back to zero), and the first value is taken as it is. One
    that has had no labeled voxel so far has none, and p = 0; the term is 0 until two classes have one. With several
    processes the prototypes are of all their patches.

    Args:
        weight: 0.1 or 0.01 in the paper's runs, without ramp.
        temperature: T; 1 in the public code, which keeps p below 0.88 with two classes; 0.1 lets it be sure.
        entropy_weight: lambda.
        momentum: of the prototypes.
        coadapt: let the gradient into p as well; else g stays as it starts.
    """

    def __init__(
        self,
        weight: float = 0.1,
        ramp: Ramp = "none",
        enabled: bool = True,
        temperature: float = 1.0,
        entropy_weight: float = 1.0,
        momentum: float = 0.999,
        coadapt: bool = True,
    ) -> None:
        super().__init__(weight, ramp, enabled)
        positive("temperature", temperature)
        at_least("entropy_weight", entropy_weight, 0)
        fraction("momentum", momentum)
        switch("coadapt", coadapt)
        self.temperature, self.entropy_weight, self.momentum, self.coadapt = (
            temperature, entropy_weight, momentum, coadapt,
        )  # fmt: skip
        self.classes = nn.ModuleDict()

    def build(self, method: Host) -> None:
        for network in method.takes:
            channels = method.feature_channels(network, "the term ERDA")
            self.classes[network] = MovingClasses(channels, len(method.class_names), self.momentum)
        self.classes.requires_grad_(self.coadapt)  # else nothing reaches g

    def terms(self, method: Host, name: str, batch: Batch, time: Time) -> Iterator[LossTerm]:
        for network in method.takes:
            view, classes = method.view(network), cast(MovingClasses, self.classes[network])
            labeled, total = batch.label.numel(), view.log_p[:, 0].numel()
            device = batch.label.device
            of_labeled = _drawn(labeled, device)
            of_unlabeled = labeled + _drawn(total - labeled, device)
            g = classes.g(voxel_rows(view.features, torch.cat([of_labeled, of_unlabeled])))
            ours, theirs = g.split([len(of_labeled), len(of_unlabeled)])
            prototypes, present = classes.updated(ours.detach(), batch.label.flatten()[of_labeled])
            ready = present.sum() > 1
            s = F.normalize(theirs, dim=1) @ F.normalize(prototypes, dim=1).T / self.temperature
            s, log_q = s if self.coadapt else s.detach(), voxel_rows(view.log_p, of_unlabeled)
            values = erda(s, log_q, present | ~ready, self.entropy_weight)
            yield method.term(name, network, masked_mean(values, ready.expand_as(values)), ready * len(values))


def erda(s: Tensor, log_q: Tensor, present: Tensor, entropy_weight: float = 1.0) -> Tensor:
    """lambda H(p) + KL(p || q) of each voxel, p = softmax(s) over the classes that are present, with gradient to both.

    Args:
        s, log_q: (n, K) float32.
        present: (K,) bool, true at least once.
    """
    log_p = s.masked_fill(~present, -torch.inf).log_softmax(dim=1)
    p, log_p = log_p.exp(), log_p.masked_fill(~present, 0.0)  # 0 log 0 = 0
    return -(p * (log_q + (entropy_weight - 1) * log_p)).sum(dim=1)


class MovingClasses(nn.Module):
    """g, and the moving mean of g(f) of each class.

    Args:
        channels: F; classes: K; momentum: of the means.
    """

    vectors: Tensor
    present: Tensor

    def __init__(self, channels: int, classes: int, momentum: float) -> None:
        super().__init__()
        # the statistics of the batch alone: g never runs in an evaluation
        norm = nn.BatchNorm1d(channels, track_running_stats=False)
        self.g = nn.Sequential(nn.Linear(channels, channels), norm, nn.ReLU(), nn.Linear(channels, channels))
        self.momentum = momentum
        self.register_buffer("vectors", torch.zeros(classes, channels))
        self.register_buffer("present", torch.zeros(classes, dtype=torch.bool))

    @torch.no_grad()
    def updated(self, g: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Move the means to those of labeled voxels, g (n, F) and label (n,); a class without a voxel keeps its own.

        Returns:
            The prototypes (K, F), and which of them there are (K,) bool.
        """
        members = (label == torch.arange(len(self.present), device=label.device)[:, None]).to(g.dtype)
        sums = torch.cat([members @ g, members.sum(dim=1, keepdim=True)], dim=1)
        sum_over_ranks(sums)
        counts = sums[:, -1:]
        new, found = sums[:, :-1] / counts.clamp(min=1), counts > 0
        known = self.present[:, None]
        moved = torch.lerp(new, self.vectors, self.momentum).where(known, new)
        self.vectors.copy_(moved.where(found, self.vectors))
        self.present |= found[:, 0]
        return self.vectors.clone(), self.present.clone()


def _drawn(voxels: int, device: torch.device) -> Tensor:
    """Indices of so many voxels: all, or DRAWN of them, uniform."""
    if voxels <= DRAWN:
        return torch.arange(voxels, device=device)
    return torch.randint(voxels, (DRAWN,), device=device)
