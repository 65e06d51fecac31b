"""How commands start and fail: Hydra where there is configuration, one clear message where the user can mend it.

No torch here: `--help` and mistakes in the configuration must answer at once.
"""

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dualseg.errors import DualsegError, Interrupted
from dualseg.quiet import quiet

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READER_GONE = 141  # exit code of a command that writes into a closed pipe (128 + SIGPIPE), as `| head` leaves it
OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)


def conf_dir() -> Path:
    """The configuration tree: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def run_with_hydra(task: Callable[[Any], Any], config_name: str) -> None:
    """Compose `config_name` with the command line's overrides and call `task` with it."""
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to `guarded`

    # guarded inside as well: Hydra prints a line of its own about what leaves the task
    def job(config: Any) -> None:
        guarded(lambda: task(config))

    guarded(hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(job))


def guarded(command: Callable[[], Any]) -> None:
    """Call `command`; turn what a user can mend into one message and an exit code."""
    quiet()
    try:
        try:
            _answer(command)
        finally:
            sys.stdout.flush()  # here, where it can be answered, and not when Python shuts down
    except BrokenPipeError:
        # what is left in the buffer would be complained about when Python shuts down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(READER_GONE) from None


def _answer(command: Callable[[], Any]) -> None:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        command()
    except Interrupted as stop:
        _exit(str(stop), 130)
    except KeyboardInterrupt:
        _exit("stopped.", 130)
    except DualsegError as error:
        _exit(f"error: {error}", 2)
    except (HydraException, OmegaConfBaseException) as error:
        _exit(f"error: {explain(error)}", 2)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        _exit(f"error: {error}. Free space, then give the same command again; a run resumes.", 2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        reason = (str(error) or "MemoryError").splitlines()[0]
        mend = (
            "Lower data.patch_size, batch.labeled and batch.unlabeled, inference.batch_size or base_channels, "
            "raise data.downsample, or use trainer.precision=bf16-mixed on a GPU."
        )
        _exit(f"error: out of memory ({reason}). {mend}", 2)


def _exit(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(code)


def explain(error: BaseException) -> str:
    """One message for a configuration error, with the nearest key or option where a name is misspelt."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    text = str(error).strip()
    for cause in causes:
        if isinstance(cause, DualsegError):  # raised in the constructor of something that Hydra instantiated
            return str(cause)
        full_key = getattr(cause, "full_key", None)
        if full_key and "Missing mandatory value" in str(cause):
            return f"{full_key} is required and has no default; give {full_key}=..."
        if full_key and "is not in struct" in str(cause):
            return f"{full_key}: no such configuration key.{_near_key(str(full_key))}"
    option = re.search(r"(?:Could not find|In '[^']+': Could not find) '([^']+)'", text)
    if option:
        group, _, name = option.group(1).rpartition("/")
        return f"{group}={name}: no such option.{_near_option(group, name)}"
    group_key = re.search(r"Could not override '([^']+)'", text)
    if group_key:
        return f"{group_key.group(1)}: no such configuration key.{_near_key(group_key.group(1))}"
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and "full stack trace" not in line)


def _near_key(key: str) -> str:
    """Nearest key of the configuration without the offending override."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from dualseg.runs.folder import flatten, nearest

    groups = [a for a in sys.argv[1:] if re.fullmatch(r"(data|method|networks|experiment|trainer|logger)=\w+", a)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            config = compose("train", overrides=groups)
        except HydraException:
            return ""
    known: Any = OmegaConf.to_container(config, resolve=False)
    flat = list(flatten(known))
    prefixes = {k.rsplit(".", n)[0] for k in flat for n in range(1, k.count(".") + 1)}
    return nearest(key, [*flat, *prefixes])


def _near_option(group: str, name: str) -> str:
    from dualseg.runs.folder import nearest

    options = sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
    return nearest(name, options) or (f" There are {', '.join(options)}." if options else "")
