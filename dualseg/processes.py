"""The processes of a run: how they are called, how many, which of them this is, how a rank ends. No torch at import."""

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError

GROUP = "DUALSEG_GROUP"  # set in the environment of the processes that `run_group` starts
PEER_LOST = 76  # exit code of a rank that only noticed that another one is gone
LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|socket closed|timed out", re.IGNORECASE)


def python_of(module: str) -> list[str]:
    """The command that starts a module in a Python as this one: `-m` alone would look for modules, such as a torch.py,
    in the working directory first, where a console script does not look at all.
    """
    looks_here = sys.path[:1] in ([""], [str(Path.cwd())])  # this one was started by -m itself
    return [sys.executable, *([] if looks_here else ["-P"]), "-m", module]


def program() -> list[str]:
    """How this command was called, without its arguments: dualseg-train, dualseg train, python -m dualseg.train."""
    called = Path(sys.argv[0])
    if called.suffix == ".py":
        return ["python", "-m", "dualseg" if called.stem == "__main__" else f"dualseg.{called.stem}"]
    return called.name.split()


def in_group() -> bool:
    """This process is one of a group that `run_group` started."""
    return GROUP in os.environ


def is_slurm_task() -> bool:
    """This process is one of several that `srun` started.

    SLURM_NTASKS does not say so: the batch script, which runs once, has it too.
    """
    return not in_group() and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def rank() -> int:
    """Global rank of this process; 0 where it is alone."""
    if in_group():
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if is_slurm_task() else 0


def world_size() -> int:
    """How many processes were started for this run; 1 where this one is alone."""
    if in_group():
        return int(os.environ[GROUP])
    return int(os.environ["SLURM_STEP_NUM_TASKS"]) if is_slurm_task() else 1


def processes_of(trainer: Mapping[str, Any]) -> int:
    """How many processes a run with these `trainer` settings takes on this machine.

    Raises:
        DualsegError: more GPUs than there are, or several machines, which Slurm alone starts.
    """
    devices = trainer["devices"]
    if trainer["num_nodes"] > 1:
        raise DualsegError(
            f"trainer.num_nodes={trainer['num_nodes']}: several machines are started by Slurm, one task for each "
            "device (srun --nodes=N --ntasks-per-node=M); leave it at 1 elsewhere."
        )
    if devices == 1:
        return 1
    gpus = 0
    if trainer["accelerator"] != "cpu":
        import torch

        gpus = torch.cuda.device_count()
    if not gpus:  # a list of indices, or accelerator=gpu without one: the trainer says so
        several = type(devices) is int and devices > 1
        if several and trainer["accelerator"] == "auto":
            fix = "give trainer.accelerator=cpu to train in as many processes on its CPU"
            raise DualsegError(f"trainer.devices={devices}: this machine has no GPU that torch sees; {fix}.")
        return devices if several else 1
    if devices in (-1, "auto"):
        return gpus
    needed, count = (max(devices) + 1, len(devices)) if isinstance(devices, list) else (devices, devices)
    if needed > gpus:
        fix = "give a number or indices of those there are, or trainer.accelerator=cpu"
        raise DualsegError(f"trainer.devices={devices}: this machine has {gpus} GPU{'s' * (gpus > 1)}; {fix}.")
    return count


@contextmanager
def as_rank() -> Iterator[None]:
    """What a process of a group does around its work; nothing in another process.

    It dies with the process that started it. A rank that fails leaves at once, since cleaning up could wait for the
    others; where it only lost another rank, rank 0 does not show that: the other one's message is the one to read.
    """
    if not in_group():
        yield
        return
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        yield
    except SystemExit as stop:
        if not stop.code:
            raise
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        code = PEER_LOST if world_size() > 1 and is_lost_peer(error) else 1
        if code != PEER_LOST or rank() != 0:
            traceback.print_exc()
    else:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _die_with_parent() -> None:
    while os.read(0, 1):  # of standard input, which the parent holds open as long as it lives
        pass
    os.killpg(0, signal.SIGKILL)


def is_lost_peer(error: BaseException) -> bool:
    """`error` is torch.distributed's about a connection to another rank that is gone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, distributed.DistError) or ("gloo" in str(error) and LOST.search(str(error)) is not None)
