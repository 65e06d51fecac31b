"""The dual method's objectives once more, from method.md sections 3 and 4, in float64 numpy and without autograd.

Every function takes the networks' outputs twice: `live`, which a gradient may flow through, and `frozen`, which stands
wherever the specification stops the gradient (sg, argmax, masks). Differencing the live ones alone, with the frozen
ones held, gives the gradient that the specification asks for.
"""

import math
from dataclasses import dataclass, field

import numpy as np

Output = tuple[np.ndarray, np.ndarray]  # logits (N, K, W, H, D), features (N, F, W, H, D)
Terms = dict[tuple[str, str | None], tuple[float, float]]  # (term, network) -> (value, weight)

WEIGHTS = {
    "supervised_ce": 1.0, "supervised_dice": 1.0, "rectification": 0.5, "cross_pseudo": 1.0, "uncertainty": 1.0,
    "entropy_filtered": 1.0, "cosine": 1.0, "contrast": 0.1,
}  # fmt: skip


@dataclass
class Setting:
    """What of the configuration enters the objective; the defaults are the specification's."""

    confidence: float = 0.6
    keep_fraction: float = 0.8
    fusion: str = "mean"
    contrast: str = "infonce"
    temperature: float = 0.1
    margin: float = 1.0
    rampup_iterations: int | None = None
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))


def log_softmax(z: np.ndarray) -> np.ndarray:
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(z))


def cross_entropy(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Per voxel (N, W, H, D)."""
    return -np.take_along_axis(log_softmax(z), y[:, None], axis=1)[:, 0]


def kl(z_q: np.ndarray, z_p: np.ndarray) -> np.ndarray:
    """KL(q || p) per voxel."""
    log_q, log_p = log_softmax(z_q), log_softmax(z_p)
    return (np.exp(log_q) * (log_q - log_p)).sum(axis=1)


def one_minus_cosine(p: np.ndarray, q: np.ndarray) -> float:
    norms = np.sqrt((p**2).sum(axis=1)) * np.sqrt((q**2).sum(axis=1))
    return float(np.mean(1 - (p * q).sum(axis=1) / norms))


def dice_loss(p: np.ndarray, y: np.ndarray) -> float:
    per_class = []
    for k in range(1, p.shape[1]):
        truth = (y == k).astype(float)
        overlap, eps = np.sum(p[:, k] * truth), 1e-5
        per_class.append(1 - (2 * overlap + eps) / (np.sum(p[:, k] ** 2) + np.sum(truth**2) + eps))
    return float(np.mean(per_class))


def disagreement(z_a: np.ndarray, z_b: np.ndarray, confidence: float) -> np.ndarray:
    """M: C_A xor C_B for two classes, C_A != C_B of the confident classes (0 where not confident) for more."""
    if z_a.shape[1] == 2:
        confident_foreground = [softmax(z)[:, 1] >= confidence for z in (z_a, z_b)]
        return np.logical_xor(*confident_foreground)
    classes = []
    for z in (z_a, z_b):
        p = softmax(z)
        classes.append(np.where(p.max(axis=1) >= confidence, p.argmax(axis=1), 0))
    return classes[0] != classes[1]


def correction(p: np.ndarray, y: np.ndarray, mask: np.ndarray) -> float:
    errors = [(p[:, k] - (y == k))[mask] ** 2 for k in range(1, p.shape[1])]
    return float(np.mean(errors)) if mask.any() else 0.0


def supervised(live: dict[str, Output], frozen: dict[str, Output], label: np.ndarray, s: Setting) -> Terms:
    n = len(label)
    mask = disagreement(frozen["a"][0][:n], frozen["b"][0][:n], s.confidence)
    terms: Terms = {}
    for i in ("a", "b"):
        z = live[i][0][:n]
        terms["supervised_ce", i] = float(cross_entropy(z, label).mean()), s.weights["supervised_ce"]
        terms["supervised_dice", i] = dice_loss(softmax(z), label), s.weights["supervised_dice"]
        terms["rectification", i] = correction(softmax(z), label, mask), s.weights["rectification"]
    return terms


def reliable_and_fused(z_a: np.ndarray, z_b: np.ndarray, s: Setting) -> tuple[np.ndarray, np.ndarray]:
    """R and yhat_fused of the unlabeled half."""
    uncertain = []
    for z in (z_a, z_b):
        entropy = -(softmax(z) * log_softmax(z)).sum(axis=1)
        uncertain.append(entropy > np.quantile(entropy, s.keep_fraction))
    if s.fusion == "union":
        fused = (np.argmax(z_a, axis=1) == 1) | (np.argmax(z_b, axis=1) == 1)
    else:
        fused = ((softmax(z_a) + softmax(z_b)) / 2).argmax(axis=1)
    return ~(uncertain[0] & uncertain[1]), fused.astype(int)


def directions(features: np.ndarray) -> np.ndarray:
    """(N, F, W, H, D) -> (voxels, F), L2-normalised."""
    rows = np.moveaxis(features, 1, -1).reshape(-1, features.shape[1])
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def prototypes(
    features: np.ndarray, reliable: np.ndarray, fused: np.ndarray, num_classes: int
) -> dict[int, np.ndarray]:
    f, found = directions(features), {}
    for k in range(num_classes):
        members = f[(reliable & (fused == k)).ravel()]
        if len(members):
            mean = members.mean(axis=0)
            found[k] = mean / np.linalg.norm(mean)
    return found


def contrast(features: np.ndarray, z: np.ndarray, drawn: np.ndarray, c: dict[int, np.ndarray], s: Setting) -> float:
    """Mean over the drawn voxels whose predicted class has a prototype."""
    predicted = z.argmax(axis=1).ravel()
    losses = []
    for v, f in zip(drawn, directions(features)[drawn], strict=True):
        own = int(predicted[v])
        if own not in c or len(c) < 2:
            continue
        if s.contrast == "infonce":
            similarity = {k: float(f @ c[k]) / s.temperature for k in c}
            losses.append(math.log(sum(math.exp(x) for x in similarity.values())) - similarity[own])
        else:
            distance = {k: float(np.linalg.norm(f - c[k])) for k in c}
            losses.append(distance[own] + sum(max(0.0, s.margin - d) for k, d in distance.items() if k != own))
    return float(np.mean(losses)) if losses else 0.0


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.linalg.norm(x / np.linalg.norm(x) - y / np.linalg.norm(y)))


def prototype_distance(
    features: np.ndarray,
    z: np.ndarray,
    reliable: np.ndarray,
    fused: np.ndarray,
    drawn: tuple[np.ndarray, np.ndarray],
    margin: float | None,
) -> float:
    """SSL-contrastive's L_c; `drawn`: of the foreground, of the background; without a margin the classes are pulled."""
    rows = np.moveaxis(features, 1, -1).reshape(-1, features.shape[1])
    kept, label, predicted = reliable.ravel(), fused.ravel(), z.argmax(axis=1).ravel()
    c = {}
    for k in range(z.shape[1]):
        members = [row for row, r, y in zip(rows, kept, label, strict=True) if r and y == k]
        if members:
            c[k] = np.mean(members, axis=0)
    apart = [distance(c[k], c[m]) for k in c for m in c if k < m]
    total = float(np.mean([d if margin is None else max(0.0, margin - d) for d in apart])) if apart else 0.0
    for voxels in drawn:
        pulled = [distance(rows[v], c[predicted[v]]) for v in voxels if predicted[v] in c]
        total += float(np.mean(pulled)) if pulled else 0.0
    return total


def ramp(t: int, length: int) -> float:
    return 1.0 if length == 0 else math.exp(-5 * (1 - min(t, length) / length) ** 2)


def described(
    live: dict[str, Output],
    frozen: dict[str, Output],
    label: np.ndarray,
    t: int,
    total: int,
    drawn: dict[str, np.ndarray],
    s: Setting,
) -> Terms:
    """Section 3. `drawn`: the voxels of the unlabeled half that the contrast of each network drew."""
    terms = supervised(live, frozen, label, s)
    n = len(label)
    z, f = {i: live[i][0][n:] for i in live}, {i: live[i][1][n:] for i in live}
    z_sg, f_sg = {i: frozen[i][0][n:] for i in live}, {i: frozen[i][1][n:] for i in live}
    w = ramp(t, total // 10 if s.rampup_iterations is None else s.rampup_iterations)
    reliable, fused = reliable_and_fused(z_sg["a"], z_sg["b"], s)
    for i, j in (("a", "b"), ("b", "a")):
        divergence = kl(z_sg[j], z[i])
        weighted = np.exp(-divergence) * cross_entropy(z[i], z_sg[j].argmax(axis=1))
        terms["cross_pseudo", i] = float(weighted.mean()), w * s.weights["cross_pseudo"]
        terms["uncertainty", i] = float(divergence.mean()), w * s.weights["uncertainty"]
        filtered = cross_entropy(z[i], fused)[reliable]
        terms["entropy_filtered", i] = float(filtered.mean()), w * s.weights["entropy_filtered"]
        terms["cosine", i] = one_minus_cosine(softmax(z[i]), softmax(z_sg[j])), w * s.weights["cosine"]
        c = prototypes(f_sg[i], reliable, fused, z[i].shape[1])
        terms["contrast", i] = contrast(f[i], z_sg[i], drawn[i], c, s), ramp(t, total) * s.weights["contrast"]
    return terms


def released(live: dict[str, Output], frozen: dict[str, Output], label: np.ndarray, s: Setting) -> Terms:
    """Section 4: the last three over the whole batch, no ramp."""
    terms = supervised(live, frozen, label, s)
    divergence = kl(frozen["b"][0], live["a"][0])
    weighted = np.exp(-divergence) * cross_entropy(live["a"][0], frozen["b"][0].argmax(axis=1))
    terms["cross_pseudo", "a"] = float(weighted.mean()), s.weights["cross_pseudo"]
    terms["uncertainty", "a"] = float(divergence.mean()), s.weights["uncertainty"]
    shared = one_minus_cosine(softmax(live["a"][0]), softmax(live["b"][0]))
    terms["cosine", None] = shared, s.weights["cosine"]
    return terms


def total(terms: Terms) -> float:
    return math.fsum(value * weight for value, weight in terms.values())
