"""Damaged copies of a file, as disks, transfers and editors make them; and what a reader makes of each."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from dualseg.data.formats import read_volume
from dualseg.errors import DualsegError

Damage = Callable[[bytes, np.random.Generator], bytes]
Verdict = Literal["refused", "same", "different"]


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """One bit is another."""
    damaged = bytearray(content)
    damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    """The end is missing."""
    return content[: rng.integers(len(content))]


def lengthened(content: bytes, rng: np.random.Generator) -> bytes:
    """Something follows that is not of the file."""
    return content + rng.bytes(int(rng.integers(1, 200)))


def zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    """A sector of 16 bytes was never written."""
    start = 16 * int(rng.integers(len(content) // 16))
    return content[:start] + bytes(16) + content[start + 16 :]


def doubled(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes are there twice."""
    start, count = int(rng.integers(len(content))), int(rng.integers(1, 65))
    return content[: start + count] + content[start:]


def without(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes in the middle are missing."""
    start, count = int(rng.integers(len(content))), int(rng.integers(1, 65))
    return content[:start] + content[start + count :]


DAMAGES: tuple[Damage, ...] = (flipped, cut, lengthened, zeroed, doubled, without)


def mutants(
    content: bytes, count: int, seed: int = 0, damages: tuple[Damage, ...] = DAMAGES
) -> Iterator[tuple[str, bytes]]:
    """`count` damaged copies, the kinds of damage in turn; none is equal to `content`.

    Yields:
        Kind and number of the damage, for messages; the content.
    """
    rng = np.random.default_rng(seed)
    number = 0
    while number < count:
        damage = damages[number % len(damages)]
        damaged = damage(content, rng)
        if damaged != content:
            yield f"{damage.__name__} {number}", damaged
            number += 1


def verdict(path: Path, expected: tuple[np.ndarray, np.ndarray]) -> Verdict:
    """What `read_volume` makes of a file that was damaged: it is refused by name, or read.

    Args:
        path: the damaged file.
        expected: array and affine of the undamaged one.
    """
    try:
        array, affine = read_volume(path)
    except DualsegError as error:
        assert os.fspath(path) in str(error), error
        return "refused"
    same = np.array_equal(array, expected[0]) and np.array_equal(affine, expected[1])
    return "same" if same else "different"
