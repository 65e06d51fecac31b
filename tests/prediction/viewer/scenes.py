"""Scans whose display copies can be computed by hand: a ramp, with a ball that is uncertain around its surface."""

import base64
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

from dualseg.data.volumes import Image
from dualseg.prediction.review import Row
from dualseg.prediction.viewer import ReviewPage

SPACING = (1.0, 2.0, 3.0)
SHAPE = (60, 30, 20)
RADIUS = 18.0  # mm


def ball(shape: tuple[int, int, int] = SHAPE, affine: np.ndarray | None = None) -> tuple[Image, np.ndarray, np.ndarray]:
    """Scan, label and uncertainty. The image rises along all three axes; the label is one ball in the middle."""
    affine = np.diag([*SPACING, 1.0]) if affine is None else affine
    places = np.einsum(
        "ij,jxyz->ixyz", affine[:3, :3], np.indices(shape) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    )
    away = np.linalg.norm(places, axis=0)
    image = sum(
        np.linspace(0, 1, n).reshape([-1 if k == axis else 1 for k in range(3)]) for axis, n in enumerate(shape)
    )
    entropy = np.exp(-(((away - RADIUS) / 4) ** 2)).astype(np.float32)
    return Image(np.asarray(image, np.float32)[None], affine), (away < RADIUS).astype(np.uint8), entropy


def row(scan: str, uncertainty: float, disagreement: float = 0.05) -> Row:
    """Of a scan that was predicted."""
    measures = {"mean_entropy": 0.01, "mean_entropy_foreground": uncertainty}
    measures |= {"disagreement": 0.01, "disagreement_foreground": disagreement}
    return Row(scan, "/patients/Mrs Doe.nii.gz", volumes={"ball": 24.4}, measures=measures)


def write_page(path: Path) -> Path:
    """Three scans, given from the sure to the doubtful, and one that failed."""
    page = ReviewPage(path, ("background", "ball"), 4)
    for name in ("sure <b>", "middle", "doubtful"):
        page.add(name, *ball())
    failed = Row("failed", "/patients/Mrs Doe.nii.gz", problem="/patients/Mrs Doe.nii.gz: truncated")
    page.write([row("sure <b>", 0.1), row("middle", 0.2), row("doubtful", 0.3, 0.4), failed], ["a", "b"])
    return path


def decoded(text: str) -> nib.Nifti1Image:
    """A file of a display copy."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
