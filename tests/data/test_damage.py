"""A damaged file is refused by its name, or gives the very same voxels; one that promises too much takes no memory."""

import bz2
import gzip
import tracemalloc
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from mutants import DAMAGES, flipped, mutants, verdict

from dualseg.data.formats import read_volume
from dualseg.errors import DualsegError

AFFINE = np.diag([-1.5, 1.5, 2, 1])
SHAPE = (16, 14, 12)
MB = 1 << 20


def image() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.int16)


def label() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[4:11, 3:9, 2:9] = 1
    array[6:9, 5:8, 4:6] = 2
    return array


def write_nifti(path: Path, array: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def write_itk(path: Path, array: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(array.T), path, useCompression=True)


def write_bzip2(path: Path, array: np.ndarray) -> None:
    nrrd.write(str(path), array, {"encoding": "bzip2"})


PACKED = {
    "x.nii.gz": (write_nifti, 0),
    "x.nrrd": (write_itk, b"\n\n"),
    "x.mha": (write_itk, b"LOCAL\n"),
    "bzip2.nrrd": (write_bzip2, b"\n\n"),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("make", [image, label])
def test_damage_to_compressed_data_never_changes_a_voxel(tmp_path, name, make) -> None:
    write, header_end = PACKED[name]
    path = tmp_path / name
    write(path, make())
    content, expected = path.read_bytes(), read_volume(path)
    # the text of a header has no checksum
    start = content.index(header_end) + len(header_end) if header_end else 0
    verdicts = {}
    for damages, count in (((flipped,), 60), (DAMAGES, 40)):
        for what, damaged in mutants(content[start:], count, seed=len(name), damages=damages):
            path.write_bytes(content[:start] + damaged)
            verdicts[what, count] = verdict(path, expected)
    assert "different" not in verdicts.values(), [key for key, value in verdicts.items() if value == "different"]
    assert [*verdicts.values()].count("refused") > 60


def test_files_without_compression_are_as_long_as_their_header_says(tmp_path) -> None:
    """Their voxels have no checksum; a header with another size is noticed all the same."""
    slice_bytes = 2 * SHAPE[0] * SHAPE[1]
    for name in ("x.nii", "x.mha", "x.nrrd"):
        path = tmp_path / name
        write_nifti(path, image()) if name == "x.nii" else sitk.WriteImage(sitk.GetImageFromArray(image().T), path)
        content = path.read_bytes()
        for other in (content[:-1], content[:-slice_bytes], content + b"\1", content + content[-slice_bytes:]):
            path.write_bytes(other)
            refused(path, "header promises")
        path.write_bytes(content + b"\0")
        if name != "x.nii":
            refused(path, "holds 1 bytes more than")


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_few_zeros_may_follow_the_voxels_of_a_nifti_file(tmp_path, name) -> None:
    path = tmp_path / name
    write_nifti(path, image())
    packed = name.endswith(".gz")
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    for count in (1, 100, 4095, 4096, 1 << 20):
        for rest in (bytes(count), bytes(count - 1) + b"\1"):
            path.write_bytes(gzip.compress(content + rest) if packed else content + rest)
            if count < 4096 and not any(rest):
                np.testing.assert_array_equal(read_volume(path)[0][0], image())
            else:
                refused(path, f"{min(count, 4096) if packed else count} bytes more than", "header promises")


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DualsegError) as caught:
        read_volume(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_gzip_in_several_parts_and_padding_are_legal_and_anything_else_at_the_end_is_not(tmp_path) -> None:
    write_nifti(tmp_path / "x.nii", image())
    whole = (tmp_path / "x.nii").read_bytes()
    path = tmp_path / "x.nii.gz"
    for cut in (100, 352, 3000, len(whole)):
        content = gzip.compress(whole[:cut]) + gzip.compress(whole[cut:])
        for padding in (b"", bytes(700)):
            path.write_bytes(content + padding)
            np.testing.assert_array_equal(read_volume(path)[0][0], image())
        path.write_bytes(content + b"garbage")
        refused(path, "follows the end")
        path.write_bytes(content + gzip.compress(b"more"))
        refused(path, "holds 4 bytes more than")
        path.write_bytes(content[:-3])
        refused(path, "breaks off")
        path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
        refused(path, "incorrect data check")


def promising(path: Path, shape: tuple[int, int, int], content: bytes) -> Path:
    """A file of uint8 voxels whose header says `shape`, whatever it holds."""
    if path.name.endswith(".nii.gz"):
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_data_dtype(np.uint8)
        header.set_sform(AFFINE, 1)
        header["magic"], header["vox_offset"] = b"n+1", 352
        path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + content, 1))
    elif path.suffix == ".mha":
        text = f"NDims = 3\nDimSize = {shape[0]} {shape[1]} {shape[2]}\nElementType = MET_UCHAR\n"
        text += "CompressedData = True\nElementDataFile = LOCAL\n"
        path.write_bytes(text.encode() + zlib.compress(content, 1))
    else:
        text = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: {shape[0]} {shape[1]} {shape[2]}\nencoding: bzip2\n\n"
        path.write_bytes(text.encode() + bz2.compress(content, 1))
    return path


@pytest.mark.parametrize("name", ["x.nii.gz", "x.mha", "x.nrrd"])
@pytest.mark.parametrize(
    ("shape", "held"), [((20, 20, 20), 64 * MB), ((1200, 1200, 1200), MB)], ids=["bomb", "promises more"]
)
def test_what_is_not_as_long_as_promised_takes_no_memory(tmp_path, name, shape, held) -> None:
    path = promising(tmp_path / name, shape, bytes(held))
    tracemalloc.start()
    try:
        refused(path, "header promises")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * MB, f"{peak / MB:.0f} MB"


def test_reading_takes_little_more_memory_than_its_result(tmp_path) -> None:
    array = np.zeros((160, 150, 140), np.int16)
    write_nifti(tmp_path / "x.nii.gz", array)
    tracemalloc.start()
    try:
        read_volume(tmp_path / "x.nii.gz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * array.size + 12 * MB, f"{peak / MB:.0f} MB"


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<u4", ">f4", "<f8"])
@pytest.mark.parametrize("scaling", [(1, 0), (0.37, -3.2)])
def test_voxels_are_those_of_nibabel_to_the_bit(tmp_path, dtype, scaling) -> None:
    """In several slabs, in both byte orders, with and without scale and offset."""
    rng = np.random.default_rng(3)
    stored = rng.normal(60, 20, (130, 120, 90, 2)).astype(dtype)
    header = nib.Nifti1Header(endianness="<" if dtype[0] == "u" else dtype[0])
    path = tmp_path / "x.nii"
    nib.save(nib.Nifti1Image(stored, AFFINE, header, dtype=stored.dtype), path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array(scaling, header.endianness + "f4").tobytes()  # nibabel resets them when it saves
    path.write_bytes(content)
    expected = np.moveaxis(np.asarray(nib.load(path).dataobj, np.float32), -1, 0)
    array = read_volume(path)[0]
    assert array.tobytes() == expected.tobytes() and array.flags.c_contiguous


def test_a_value_beyond_float32_is_not_finite(tmp_path) -> None:
    array = np.ones(SHAPE)
    array[3, 4, 5] = 1e300
    write_nifti(tmp_path / "x.nii", array)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(tmp_path / "x.nii", "NaN or infinite")


def test_the_header_of_a_pair_is_compared_with_its_checksum(tmp_path) -> None:
    nib.save(nib.Nifti1Pair(image(), AFFINE), tmp_path / "x.img.gz")
    path = tmp_path / "x.hdr.gz"
    np.testing.assert_array_equal(read_volume(path)[0][0], image())
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    for name in ("x.img.gz", "x.hdr.gz"):
        refused(tmp_path / name, "incorrect data check")
    path.write_bytes(gzip.compress(gzip.decompress(content) + bytes(1 << 27), 1))
    refused(path, "longer than")
