"""Dual networks, the conference paper (Lu et al., ISBI 2025): SSL-contrastive with two terms of RCPS."""

from typing import Any

from dualseg.methods.ssl_contrastive import SSLContrastive
from dualseg.methods.terms import Term


class DualISBI(SSLContrastive):
    """Two networks with pseudo-labels weighted by divergence, the cosine, and class prototypes (arXiv:2505.17690).

    L_i = CE + Dice + 1/2 rectification + mean over R of CE(z_i, yhat) + mean exp(-D_i) CE(z_i, argmax sg p_j)
    + mean D_i + mean (1 - cos(p_i, p_j)) + lambda(t) L_c,i, with D_i = KL(sg p_j || p_i). `SSLContrastive` has yhat, R
    and L_c; `method=dual` is the journal version. `objective=released` is that of `method=dual`: the same script.

    Differences: those of `ssl_contrastive`. The pseudo-label terms have weight 1 from the start, as written. The cosine
    is symmetric; each network is trained by it once, as in the script.

    Args:
        loser_only: as in `SSLContrastive`; the default here trains both networks.
        others: see `SSLContrastive`.
    """

    TERMS = {
        "supervised_ce": Term("labeled"),
        "supervised_dice": Term("labeled"),
        "rectification": Term("labeled", weight=0.5),
        "cross_pseudo": Term("unlabeled"),
        "uncertainty": Term("unlabeled"),
        "entropy_filtered": Term("unlabeled"),
        "cosine": Term("unlabeled"),
        "contrast": Term("unlabeled", weight=0.1, ramp="run"),  # lambda
    }

    def __init__(self, *args: Any, loser_only: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, loser_only=loser_only, **kwargs)
