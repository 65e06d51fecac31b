"""How commands fail: one clear message where the user can fix it, and an exit code. No torch here."""

import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, NoReturn

from dualseg.command.misspelt import empty_group, explain
from dualseg.command.quiet import quiet
from dualseg.errors import DISK_FULL, DualsegError, Interrupted
from dualseg.machine import is_out_of_memory
from dualseg.names import without_controls
from dualseg.signals import stoppable

NO_HOME = "Could not determine home directory."
READER_GONE = 141  # exit code of a command that writes into a closed pipe (128 + SIGPIPE), as `| head` leaves it
DEVICES = "pytorch_lightning.trainer.connectors.accelerator_connector"  # Lightning's reader of `trainer`
MORE_MEMORY = "End other programs, or use a machine with more memory."


def guarded(command: Callable[[], Any], out_of_memory: str = MORE_MEMORY) -> None:
    """Call `command`; turn what a user can fix, SIGINT and SIGTERM into one message and an exit code.

    Args:
        command: what is to be done.
        out_of_memory: what to do when there is too little memory for it: it depends on the command.
    """
    quiet()
    _warn_of_other_torch()
    try:
        try:
            with stoppable():
                _answer(command, out_of_memory)
        except Interrupted as stop:  # also one that came while another answer was given
            _exit(str(stop), stop.code)
        finally:
            sys.stdout.flush()  # here, where it can be answered, and not when Python shuts down
    except BrokenPipeError:
        # what is left in the buffer would be complained about when Python shuts down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(READER_GONE) from None


@cache  # commands within a command ask again
def _warn_of_other_torch() -> None:
    """Say in one line if the installed torch is not one that pyproject.toml takes, such as an older one."""
    from packaging.requirements import Requirement

    try:
        wanted = next(r for r in map(Requirement, requires("dualseg") or ()) if r.name == "torch")
        installed = version("torch")
    except (PackageNotFoundError, StopIteration):
        return
    if not wanted.specifier.contains(installed, prereleases=True):
        why = "older ones compute some 3-D convolutions slowly or wrongly"
        fix = f'pip install "torch{wanted.specifier}"'
        print(f"warning: torch {installed}: dualseg needs torch{wanted.specifier} ({why}): {fix}", file=sys.stderr)


def _answer(command: Callable[[], Any], out_of_memory: str) -> None:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        command()
    except KeyboardInterrupt:  # of a thread, or where the main one is another's
        _exit("stopped.", 130)
    except DualsegError as error:
        _exit(f"error: {error}", 2)
    except (HydraException, OmegaConfBaseException) as error:
        _exit(f"error: {explain(error)}", 2)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        _exit(f"error: {error}. Free space, then give the same command again; a run resumes.", 2)
    except Exception as error:
        reason = " ".join(str(error).split())
        if is_out_of_memory(error):
            reason = (str(error) or "MemoryError").splitlines()[0]
            _exit(f"error: out of memory ({reason}). {out_of_memory}", 2)
        if "does not have a deterministic implementation" in reason:
            _exit(f"error: {reason.partition(',')[0]}; give trainer.deterministic=warn, or leave it at false.", 2)
        if reason == NO_HOME:  # of Python's `expanduser`
            _exit("error: a path begins with ~, and there is no such home folder; give the whole path.", 2)
        if reason.startswith("Config group override must be") and (problem := empty_group()):
            _exit(f"error: {problem}", 2)
        # by the place and not by the type: Lightning's MisconfigurationException can be a bug of a method as well
        if any(frame.f_globals.get("__name__") == DEVICES for frame, _ in traceback.walk_tb(error.__traceback__)):
            fix = (
                "Give what this machine has in trainer.accelerator, trainer.devices, trainer.strategy and "
                "trainer.precision; auto, 1, auto and 32-true work anywhere."
            )
            _exit(f"error: the trainer cannot be set up: {reason} {fix}", 2)
        raise


def _exit(message: str, code: int) -> NoReturn:
    print(without_controls(message), file=sys.stderr)
    raise SystemExit(code)
