"""Patches mixed by a box, loops over voxels in float64: what the tests of mixing methods compare with."""

import numpy as np
import torch
from method_toys import Tiny
from scipy import ndimage

from dualseg.data.batch import Batch

SIZE = (5, 4, 5)


def decided(classes):
    """A network that predicts 1 where it is very bright and 2 where it is very dark: several components each."""
    network = Tiny(num_classes=classes, dropout=0.0)
    with torch.no_grad():
        network.body.weight.copy_(torch.tensor([1.0, -1.0, 0.8, -0.8]).view_as(network.body.weight))
        network.body.bias.zero_()
        rows = torch.tensor([[0.1, 0.2, 0.0, 0.1], [1.0, -0.1, 0.8, 0.1], [0.1, 1.0, -0.1, 0.8]])
        network.head.weight.copy_(rows[:classes].view_as(network.head.weight))
        network.head.bias.copy_(torch.tensor([3.5, 0.1, 0.0])[:classes])
    return network


def batch_of(labeled=4, unlabeled=4, classes=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(labeled + unlabeled, 1, *SIZE, generator=g) * 2
    label = torch.randint(classes, (labeled, *SIZE), generator=g)
    return Batch(image, label, [f"case_{n}" for n in range(len(image))])


# Weights of `Tiny` in float64, one voxel after another


def weights_of(network):
    return [p.detach().double().numpy().squeeze() for p in network.parameters()]


def probabilities(weights, voxel):
    w1, b1, w2, b2 = weights
    z = w2 @ np.maximum(w1 * voxel + b1, 0) + b2
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def in_box(v, seed=3):
    """The box that is drawn first after the seed: int(2/3 of each side), its corner uniform."""
    torch.manual_seed(seed)
    numbers = torch.rand(1, 3)[0].tolist()
    sides = [int(2 / 3 * size) for size in SIZE]
    starts = [int(r * (size - side)) for r, size, side in zip(numbers, SIZE, sides, strict=True)]
    return all(start <= x < start + side for x, start, side in zip(v, starts, sides, strict=True))


def region_losses(weights, images, labels, mask):
    """(CE_msk, D_msk) of patches within a mask: lists of (W, H, D) arrays."""
    entropy, voxels, scores = 0.0, 0, []
    for image, label in zip(images, labels, strict=True):
        classes = len(weights[3])
        both, either = np.zeros(classes), np.zeros(classes)
        for v in np.ndindex(*SIZE):
            if mask[v]:
                p, y = probabilities(weights, image[v]), np.eye(classes)[label[v]]
                entropy, voxels = entropy - np.log(p[label[v]]), voxels + 1
                both, either = both + p * y, either + p + y
        scores += ((2 * both + 1e-5) / (either + 1e-5)).tolist()
    return entropy / voxels, 1 - np.mean(scores)


def predicted_class(weights, image):
    return np.array([probabilities(weights, x).argmax() for x in image.ravel()]).reshape(SIZE)


def largest(label, classes):
    """Of each of `classes` the largest component alone, the rest background; other classes as they are."""
    kept = np.where(np.isin(label, list(classes)), 0, label)
    for k in classes:
        found, count = ndimage.label(label == k, ndimage.generate_binary_structure(3, 3))
        sizes = [(found == c).sum() for c in range(1, count + 1)]
        if sizes:
            kept[found == 1 + int(np.argmax(sizes))] = k
    return kept


def pseudo_label(weights, image):
    return largest(predicted_class(weights, image), range(1, len(weights[3])))
