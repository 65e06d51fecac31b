"""Runs commands in forks of one process that has imported what they need, and kills them where it is told to.

One JSON object a line, in and out: {"module", "words", "folder", "at", "cwd"} -> {"code", "changes", "said"}.
"""

import importlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")  # audit events; `open` where it is for writing


def serve() -> None:
    import dualseg.evaluate
    import dualseg.export
    import dualseg.predict
    import dualseg.prediction.scan_loop
    import dualseg.prepare
    import dualseg.report
    import dualseg.studies.writing
    import dualseg.train
    import dualseg.training.assembly  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as count:
            child = os.fork()
            if child == 0:
                run(job, said.fileno(), count.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            changes = os.pread(count.fileno(), 20, 0)
            reply = {"code": code, "changes": int(changes or 0), "said": said.read().decode(errors="replace")}
        print(json.dumps(reply), flush=True)


def run(job: dict[str, Any], said: int, count: int) -> None:
    """Run a command in this process, which ends with it."""
    os.setpgid(0, 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(job["cwd"])
    listen(job["folder"], job["at"], count)
    sys.argv = [f"dualseg-{job['module'].rpartition('.')[2]}", *job["words"]]
    code = 1
    try:
        importlib.import_module(job["module"]).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def listen(folder: str, at: int | None, count: int) -> None:
    """Count what changes a folder; before the change of number `at`, this process is killed."""
    done = 0

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes | Path) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        changed = Path(os.fsdecode(path))
        # a name alone is relative to a folder that is being removed
        if changed.absolute().is_relative_to(folder) or len(changed.parts) == 1:
            done += 1
            os.pwrite(count, str(done).encode(), 0)
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


if __name__ == "__main__":
    serve()
