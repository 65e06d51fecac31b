"""`report=true`: the page beside the maps, of the same label and uncertainty."""

import base64
import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from predict_toys import save, scene

AFFINE = np.diag([-2.0, 1.5, 2.5, 1])  # x runs to the left: the page turns it round
SHAPE = (32, 42, 26)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for name, blur in (("sharp", 1.0), ("faint", 0.85)):
        save(tmp_path / "scans" / f"{name}.nii.gz", blur * scene(AFFINE, SHAPE)[0], AFFINE)
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no NIfTI")
    return tmp_path / "scans"


def shown(page: str, kind: str, number: int) -> np.ndarray:
    (text,) = re.findall(rf'id="{kind}-{number}">(.*?)</script>', page)
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text))).dataobj)


def test_the_page_shows_what_was_written(predict, scans: Path, tmp_path: Path) -> None:
    outcome = predict(f"input={scans}", "report=true", "uncertainty=true")
    outcome.complains("1 of 3 scans failed", "broken")
    out = tmp_path / "out"
    assert f"To look through: {out / 'report.html'}" in outcome.out
    page = (out / "report.html").read_text()
    listed = json.loads(re.findall(r'id="state">(.*?)</script>', page)[0])["scans"]
    assert sorted(scan["name"] for scan in listed) == ["faint", "sharp"] and "see summary.csv: broken" in page
    means = [float(scan["uncertainty"].removesuffix(" %")) for scan in listed]
    assert means == sorted(means, reverse=True) and means[0] > means[1]
    for scan in listed:
        label, entropy = (
            np.asarray(nib.load(out / kind / f"{scan['name']}.nii.gz").dataobj)[::-1] for kind in ("labels", "entropy")
        )
        np.testing.assert_array_equal(shown(page, "label", scan["number"]), label)
        doubt = shown(page, "uncertainty", scan["number"])
        np.testing.assert_allclose(doubt / 255, entropy, atol=0.5 / 255 + 1e-6)


def test_uncertainty_maps_are_written_only_where_asked_for(predict, scans: Path, tmp_path: Path) -> None:
    assert predict(scans / "sharp.nii.gz", "report=true").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "labels", "prediction.json", "report.html", "summary.csv",
    ]  # fmt: skip
    assert shown((tmp_path / "out" / "report.html").read_text(), "uncertainty", 0).any()
    assert predict(scans / "sharp.nii.gz", f"output={tmp_path / 'plain'}").code == 0
    assert not (tmp_path / "plain" / "report.html").exists()
