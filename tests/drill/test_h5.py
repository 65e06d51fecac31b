"""Prepared volumes (HDF5) with damaged bytes: each is refused by name, or read as it was written.

python tests/drill/test_h5.py [MUTANTS]
"""

import multiprocessing
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from dualseg.data import LeftAtrium
from dualseg.data.left_atrium import case_list
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError
from dualseg.preparation.base import Volume
from dualseg.preparation.writing import _write_volumes

CASE = case_list("train")[0]
SHAPE = (24, 20, 16)


def volume() -> Volume:
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return Volume(Image(array[None], np.eye(4)), (array > 1).astype(np.uint8))


def mutant(content: bytes, seed: int) -> bytes:
    """One bit, some bytes, or a stretch is changed, or the end is cut off; half of them where the structures lie."""
    rng, changed = random.Random(seed), bytearray(content)
    reach = rng.choice([min(2048, len(content)), len(content)])
    kind = rng.choice(["bit", "bit", "bytes", "zeros", "cut"])
    place = rng.randrange(reach)
    if kind == "bit":
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(4):
            changed[rng.randrange(reach)] = rng.randrange(256)
    elif kind == "zeros":
        changed[place : place + 64] = bytes(len(changed[place : place + 64]))
    else:
        del changed[place:]
    return bytes(changed)


def outcome(root: Path) -> str:
    """What reading the case comes to."""
    source, written = LeftAtrium(root), volume()
    try:
        image, label = source.read_image(CASE).array, source.read_label(CASE)
    except DualsegError as error:
        return "refused" if str(root) in str(error) else "refused without a name"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    same = np.array_equal(image, written.image.array) and np.array_equal(label, written.label)
    return "as written" if same else "WRONG IN SILENCE"


def drill(mutants: int) -> Counter[str]:
    """How often each outcome came; each mutant is read by a process of its own, which it may end."""
    context = multiprocessing.get_context("fork")
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, LeftAtrium.file.format(case=CASE))
        path.parent.mkdir(parents=True)
        _write_volumes(path, volume())
        content = path.read_bytes()
        for seed in range(mutants):
            path.write_bytes(mutant(content, seed))
            with context.Pool(1) as pool:
                try:
                    found[pool.apply_async(outcome, (Path(folder),)).get(timeout=20)] += 1
                except multiprocessing.TimeoutError:
                    found["no end, or the process died"] += 1
    return found


def test_damaged_volumes_are_refused_or_read_as_written():
    found = drill(40)
    assert {*found} <= {"refused", "as written"}, found
    assert found["refused"] > 25
