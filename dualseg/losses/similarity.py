"""Predictions from how alike features are: within an image, and to the classes of others (SemSim, arXiv:2410.13486)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def refined(p: Tensor, features: Tensor, temperature: float = 0.1) -> Tensor:
    """1/2 (p + p M): half of each voxel's prediction comes from those with features like its own.

    M (V, V) = softmax over u of cos(f_u, f_v) / temperature, so that its columns add up to 1 and p stays a probability.

    Args:
        p: (N, K, W, H, D) float32 probabilities, V = W H D voxels.
        features: (N, F, W, H, D) float32.

    >>> p = torch.eye(2).view(1, 2, 2, 1, 1)
    >>> refined(p, torch.ones(1, 3, 2, 1, 1)).flatten()
    tensor([0.7500, 0.2500, 0.2500, 0.7500])
    """
    f = F.normalize(features.flatten(2), dim=1)
    m = (f.transpose(1, 2) @ f / temperature).softmax(dim=1)
    return 0.5 * (p + (p.flatten(2) @ m).view_as(p))


def patch_prototypes(features: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """G(j, c): mean feature of class c in patch j; and which classes each patch has.

    Args:
        features: (J, F, W, H, D) float32 of labeled patches.
        label: (J, W, H, D) int64.

    Returns:
        (J, K, F), 0 for a class that is not there; (J, K) bool.

    >>> features = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).view(1, 2, 2, 1, 1)
    >>> label = torch.tensor([0, 1]).view(1, 2, 1, 1)
    >>> patch_prototypes(features, label, num_classes=2)[0]
    tensor([[[2., 0.],
             [0., 3.]]])
    """
    members = torch.stack([label.flatten(1) == k for k in range(num_classes)], dim=1)
    counts = members.sum(dim=2)
    sums = members.to(features.dtype) @ features.flatten(2).transpose(1, 2)
    return sums / counts.clamp(min=1)[:, :, None], counts > 0


def similarities(features: Tensor, prototypes: Tensor) -> Tensor:
    """m(j, c) = cos(f(v), G(j, c)): (N, F, W, H, D) and (J, K, F) -> (N, J, K, W, H, D).

    >>> similarities(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1), torch.eye(2).view(1, 2, 2)).flatten()
    tensor([1., 0.])
    """
    f, g = F.normalize(features, dim=1), F.normalize(prototypes, dim=2)
    return torch.einsum("nfwhd,jkf->njkwhd", f, g)


def class_log_probabilities(m: Tensor, present: Tensor, temperature: float = 0.1) -> Tensor:
    """log softmax over c of the log of the mean over j of exp(m(j, c) / temperature), over those j that have class c.

    A class that no patch has gets a probability of 0.

    Args:
        m: (N, J, K, W, H, D) from `similarities`, J > 0.
        present: (J, K) bool.

    Returns:
        (N, K, W, H, D).

    >>> m = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1, 1, 1)
    >>> class_log_probabilities(m, torch.tensor([[True, True]]), temperature=1.0).exp().flatten()
    tensor([0.7311, 0.2689])
    """
    lowest = torch.finfo(m.dtype).min  # -inf would have a gradient of NaN where no patch has the class
    counted = (m / temperature).where(_spread(present), lowest)
    logits = counted.logsumexp(dim=1) - _spread(present.sum(dim=0).clamp(min=1).log())
    return logits.where(_spread(present.any(dim=0)), lowest).log_softmax(dim=1)


@torch.no_grad()
def agreement(m: Tensor, present: Tensor, sharpness: float = 1000.0) -> Tensor:
    """mean over j of exp(-sharpness KL(m_j || mean of the m_j)): whether the labeled patches say the same of a voxel.

    m_j = softmax over c of m(j, c), c that any patch has; a patch without one takes the mean of the others for it.

    Args:
        m: (N, J, K, W, H, D) from `similarities`, J > 0.
        present: (J, K) bool.

    Returns:
        (N, W, H, D) in 0..1.

    >>> m = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1, 1, 1)
    >>> agreement(m, torch.tensor([[True, True]]))
    tensor([[[[1.]]]])
    """
    there, anywhere = _spread(present), _spread(present.any(dim=0))
    others = m.where(there, 0.0).sum(dim=1) / _spread(present.sum(dim=0).clamp(min=1))
    log_m = m.where(there, others[:, None]).where(anywhere, torch.finfo(m.dtype).min).log_softmax(dim=2)
    mean = log_m.exp().mean(dim=1, keepdim=True)
    summands = log_m.exp() * (log_m - mean.clamp(min=torch.finfo(m.dtype).tiny).log())
    return (-sharpness * summands.where(anywhere, 0.0).sum(dim=2)).exp().mean(dim=1)


def _spread(of_classes: Tensor) -> Tensor:
    """(..., K) -> (..., K, 1, 1, 1), to stand beside a volume's axes."""
    return of_classes[..., None, None, None]
