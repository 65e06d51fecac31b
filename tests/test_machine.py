"""How much memory there is, and sizes as people write them."""

import os
import resource
from pathlib import Path

import pytest

from dualseg.errors import DualsegError
from dualseg.machine import SHARE, MemoryLimit, bytes_of, file_problem, is_out_of_memory, machine_memory, size_text

RAM = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GIB = 2**30
V1, V2 = "memory/{}/memory.limit_in_bytes", "{}/memory.max"


def machine(root: Path, own: str, limits: dict[str, str]) -> Path:
    """A file system in which /proc/self/cgroup says `own`, and these files below /sys/fs/cgroup exist."""
    for name, text in {"proc/self/cgroup": own, **{f"sys/fs/cgroup/{n}": t for n, t in limits.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/", {V2.format("."): "max"}, RAM),
        ("0::/", {V2.format("."): str(GIB)}, GIB),  # a container that sees its own cgroup as the root
        ("0::/job/step", {V2.format("job/step"): "max", V2.format("job"): str(GIB // 2)}, GIB // 2),  # the job's
        ("0::/job/step", {V2.format("job/step"): str(GIB // 4), V2.format("job"): str(GIB)}, GIB // 4),
        ("3:cpu,memory:/job\n0::/", {V1.format("job"): str(GIB)}, GIB),
        ("3:memory:/docker/123", {V1.format("."): str(GIB)}, GIB),  # that path is only there outside the container
        ("3:memory:/", {V1.format("."): "9223372036854771712"}, RAM),  # no limit, as version 1 says it
        ("4:memoryless:/job", {V1.format("job"): "1"}, RAM),
        ("0::/elsewhere", {}, RAM),
    ],
)
def test_limits_of_a_container_or_job(tmp_path, own, limits, expected):
    assert machine_memory(machine(tmp_path, own, limits)) == expected


def test_a_machine_without_cgroups(tmp_path):
    assert machine_memory(tmp_path) == RAM


def test_ulimit_counts(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (GIB, resource.RLIM_INFINITY))
    assert machine_memory() == GIB
    limit = MemoryLimit.of("data.memory")
    assert limit.size == int(SHARE * GIB) and "this machine offers 922 MiB" in limit.said
    assert MemoryLimit.of("data.memory", "5 GiB")[:2] == (5 * GIB, "data.memory=5 GiB is given")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * GIB), ("900mb", 900 * 10**6), ("1.5 TiB", 3 * 2**39), ("1B", 1)],
)
def test_sizes_are_read(text, size):
    assert bytes_of("memory", text) == size


@pytest.mark.parametrize("text", ["8", "GiB", "-1GiB", "0MB", "8GB!", "None", 8, True])
def test_no_sizes(text):
    with pytest.raises(DualsegError, match=r"data\.memory=.*8GiB"):
        bytes_of("data.memory", text)


def test_sizes_are_written():
    assert [size_text(n) for n in (10, 3 * 2**20, 13.2 * GIB, 477 * 2**40, 2385 * 2**40)] == [
        *("9.54e-06 MiB", "3 MiB", "13.2 GiB", "477 TiB", "2,385 TiB")
    ]


def test_too_little_memory_is_known_also_where_another_error_wraps_it():
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    assert is_out_of_memory(wrapped) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("a bug"))


def test_a_file_is_compared_with_the_machine():
    assert file_problem((100, 100, 100)) is None
    problem = file_problem((32767, 32767, 32767))
    assert problem is not None and "32767 x 32767 x 32767" in problem and "128 TiB" in problem
