"""Commands that are killed at any of the changes they make on disk, and started again with the same words.

What comes of it must be what an undisturbed command makes, and nothing of the killed one may stay.

    python tests/drill/kills.py [KILLS]      of every command, spread over its changes; minutes
"""

import csv
import hashlib
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

LOCK = ".lock"  # of a process that was killed when all was done: nobody holds it
VOLATILE = ("started", "finished", "seconds", "resumed")  # in JSON files
TINY = [
    "data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "data.labeled=2", "base_channels=2",
    "trainer.accelerator=cpu", "trainer.threads=1", "trainer.progress_bar=false",
]  # fmt: skip


class Ended(NamedTuple):
    """How a command ended: exit code, below 0 the signal; changes it made in its folder; what it printed."""

    code: int
    changes: int
    said: str


Start = Callable[["Drill", int | None], Ended]


@dataclass(frozen=True)
class Drill:
    """A command.

    Attributes:
        module: whose `main` it is.
        words: of its command line.
        folder: in which its changes are counted.
        template: what `folder` is a copy of at first; None: it is not there.
        code: with which it ends, undisturbed.
        ignored: pattern of paths in `folder` that need not be the same.
    """

    module: str
    words: Sequence[str]
    folder: Path
    template: Path | None = None
    code: int = 0
    ignored: str = "$^"

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.template:
            shutil.copytree(self.template, self.folder)

    def result(self) -> dict[str, Any]:
        """Path -> content, but for times."""
        found = {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}
        return {
            name: _content(path)
            for name, path in found.items()
            if path.name != LOCK and not re.search(self.ignored, name)
        }


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text()))
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(path.read_text()))
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if "time/" not in row.get("name", "")]
    if path.suffix == ".ckpt":
        import torch

        state = torch.load(path, weights_only=True)["state_dict"]
        return {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in state.items()}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in VOLATILE}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


@contextmanager
def server(cwd: Path) -> Iterator[Start]:
    """Starts drills; the second argument is the change before which they are killed."""
    command = [sys.executable, str(Path(__file__).with_name("server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def start(drill: Drill, at: int | None = None) -> Ended:
            job = {"module": drill.module, "words": drill.words, "folder": str(drill.folder), "at": at, "cwd": str(cwd)}
            stdin.write(json.dumps(job) + "\n")
            stdin.flush()
            return Ended(**json.loads(stdout.readline()))

        try:
            yield start
        finally:
            stdin.close()


class Undisturbed(NamedTuple):
    """What a drill makes, and with how many changes."""

    result: dict[str, Any]
    changes: int


def undisturbed(drill: Drill, start: Start) -> Undisturbed:
    drill.reset()
    ended = start(drill, None)
    assert ended.code == drill.code, ended.said
    return Undisturbed(drill.result(), ended.changes)


def problems(drill: Drill, start: Start, expected: Undisturbed, *at: int) -> list[str]:
    """Kill one start after the other at these changes, go on, and say what is not as it should be."""
    drill.reset()
    for place in at:
        ended = start(drill, place)
        if ended.code != -signal.SIGKILL:  # what was left took fewer changes
            break
    ended = start(drill, None)
    if ended.code != drill.code:
        return [f"exit code {ended.code}: {ended.said[-2000:]}"]
    found = [f"{path} is left" for path in drill.folder.rglob(".*") if path.name != LOCK]
    result = drill.result()
    names = sorted(result.keys() | expected.result.keys())
    return found + [f"{name} differs" for name in names if result.get(name) != expected.result.get(name)]


def spread(changes: int, count: int) -> list[int]:
    """`count` of the numbers 1 to `changes`."""
    return sorted({1 + index * (changes - 1) // max(1, count - 1) for index in range(count)})


def training(root: Path) -> Drill:
    """The embedded dataset is made, two networks are trained and evaluated."""
    folder = root / "training"
    data = [f"data.root={folder / 'data'}", "+data.source.train=4", "+data.source.test=1"]
    data.append("+data.source.shape=[16,16,16]")
    length = ["trainer.max_iterations=2", "trainer.checkpoint_every=1", "trainer.validate_every=1"]
    own = ["data.held_out_validation=1", f"output={folder / 'runs'}", "name=run"]
    return Drill("dualseg.train", [*data, *TINY, *length, *own], folder)


def of_a_run(root: Path, trained: Path) -> dict[str, Drill]:
    """What is done with a trained run.

    Args:
        trained: what `training` has made.
    """
    run, scans = root / "run" / "runs" / "run", trained / "data" / "images"
    here: dict[str, Any] = {"folder": root / "run", "template": trained}
    predicting = [f"run={trained / 'runs' / 'run'}", f"input={scans}", f"output={root / 'predicted'}"]
    exporting = [f"run={trained / 'runs' / 'run'}", "format=bundle", f"output={root / 'exported' / 'bundle'}"]
    return {
        "evaluation": Drill("dualseg.evaluate", [f"run={run}"], **here, ignored="/002-"),  # killed when all was done
        "prediction": Drill("dualseg.predict", [*predicting, "uncertainty=true", "report=true"], root / "predicted"),
        "report": Drill("dualseg.report", ["run", str(run)], **here, ignored=r"report\.html$"),
        "export": Drill("dualseg.export", exporting, root / "exported", ignored=r"\.pt2$"),
    }


def preparation(root: Path) -> Drill:
    """Two cases of Left Atrium; that the others are not there is an error in the end."""
    sys.path.append(str(Path(__file__).parents[1] / "preparation"))
    import numpy as np
    from raw_files import lps_affine, write_la

    from dualseg.data.left_atrium import case_list

    label = np.zeros((24, 20, 8))
    label[8:16, 6:14, 2:6] = 255
    image = np.random.default_rng(0).integers(80, 120, label.shape) + label / 5
    for case in case_list("train")[:2]:
        write_la(root / "raw" / case, image, label, lps_affine((0.625,) * 3, (0.0,) * 3))
    words = ["data=la", f"raw={root / 'raw'}", f"out={root / 'prepared'}", "workers=1"]
    return Drill("dualseg.prepare", words, root / "prepared", code=2)


def study(root: Path, trained: Path) -> Drill:
    """Tables and figures of a run."""
    words = ["study", str(trained / "runs" / "run"), "--output", str(root / "study")]
    return Drill("dualseg.report", words, root / "study")


def main() -> None:
    """Print, for each command, how often it was killed and what was wrong afterwards."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    failed = 0
    with tempfile.TemporaryDirectory() as name, server(Path(name)) as start:
        root = Path(name)
        first = training(root)
        expected = undisturbed(first, start)
        trained = Path(shutil.copytree(first.folder, root / "trained"))
        drills = {"training": first, **of_a_run(root, trained)}
        drills |= {"preparation": preparation(root), "study": study(root, trained)}
        for what, drill in drills.items():
            expected = undisturbed(drill, start)
            places = spread(expected.changes, kills // len(drills))
            pairs = [(place,) for place in places]
            again = random.Random(0)
            pairs += [(place, again.randint(1, expected.changes)) for place in places[::4]]  # killed twice
            wrong = {pair: found for pair in pairs if (found := problems(drill, start, expected, *pair))}
            failed += len(wrong)
            print(
                f"{what}: {len(pairs)} times killed at {expected.changes} changes, {len(wrong)} times wrong", flush=True
            )
            for pair, found in wrong.items():
                print(f"  killed at {', '.join(map(str, pair))}:", *found, sep="\n    ")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
