"""`make test-slurm`: a sweep of four runs on a real Slurm, preempted, requeued, finished; minutes on two cores.

Two runs take one process and two take two. A job of higher priority takes the machine from all of them; each writes a
checkpoint, is requeued by submitit and goes on. Later Slurm itself requeues one that was not asked before.
"""

import collections
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster import cluster, missing, wait

from dualseg.data import Phantom

ITERATIONS = 100
SHAPE = (40, 36, 32)
PATIENCE = 900.0  # seconds for each step: the machine may be busy


def words(folder: Path) -> list[str]:
    """Of the sweep. No checkpoint but those that a signal asks for and the last: a run that resumes proves one."""
    return [
        "-m", "launcher=slurm", "hydra.launcher.partition=low", "hydra.launcher.mem_gb=null",
        "hydra.launcher.cpus_per_task=1", "seed=0,1", "trainer.devices=1,2", "trainer.strategy=ddp",
        "trainer.accelerator=cpu", "trainer.threads=1", "trainer.progress_bar=false", "trainer.log_every=1",
        "trainer.checkpoint_every=100000", f"trainer.max_iterations={ITERATIONS}", "base_channels=4",
        f"data.root={folder / 'phantom'}", "+data.source.train=6", "+data.source.test=2",
        f"+data.source.shape={list(SHAPE)}".replace(" ", ""), "data.patch_size=[32,32,32]", "data.stride=[32,32,32]",
        "data.labeled=2", f"output={folder / 'runs'}",
    ]  # fmt: skip


class Runs:
    """The run folders of the sweep."""

    def __init__(self, output: Path) -> None:
        self.output = output

    @property
    def folders(self) -> list[Path]:
        return sorted(file.parent for file in self.output.glob("*/manifest.json"))

    def points(self, folder: Path) -> list[tuple[str, str]]:
        """(iteration, name) of every whole line of the curves."""
        file = folder / "logs" / "curves.csv"
        with file.open(newline="") if file.is_file() else open(os.devnull) as lines:  # noqa: PTH123
            return [(row[0], row[1]) for row in csv.reader(lines) if len(row) == 3][1:]

    def train(self) -> bool:
        """All four have begun."""
        return len(self.folders) == 4 and all(len(self.points(folder)) > 20 for folder in self.folders)

    def resumed(self) -> list[list[int]]:
        """Of each run, the iterations from which it went on."""
        manifests = [json.loads((folder / "manifest.json").read_text()) for folder in self.folders]
        return [[one["iteration"] for one in manifest["resumed"]] for manifest in manifests]

    def check(self) -> None:
        """Raises: AssertionError."""
        assert len(self.folders) == 4, self.folders
        for folder in self.folders:
            metrics = json.loads((folder / "metrics.json").read_text())
            assert (metrics["status"], metrics["iterations"]) == ("finished", ITERATIONS), metrics
            counted = collections.Counter(self.points(folder))
            assert set(counted.values()) == {1}, f"{folder}: points of curves twice"
            losses = sorted(int(iteration) for iteration, name in counted if name == "loss/total")
            assert losses == list(range(1, ITERATIONS + 1)), f"{folder}: {losses}"
            assert [p.name for p in (folder / "checkpoints").iterdir()] == [f"iteration-{ITERATIONS:06d}.ckpt"]


def sweep(folder: Path, environment: dict[str, str]) -> None:
    """The test."""
    runs = Runs(folder / "runs")

    def slurm(*command: str) -> str:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def running() -> set[str]:
        return set(
            slurm("squeue", "--noheader", "--array", "--partition=low", "--states=running", "--format=%i").split()
        )

    def step(what: str, until: object) -> None:
        print(f"waiting: {what}", flush=True)

        def done() -> bool:
            assert launched.poll() is None, "the sweep has ended too early"
            return bool(until())  # type: ignore[operator]

        wait(what, done, PATIENCE)

    with (folder / "sweep.log").open("w") as log:
        command = [sys.executable, "-m", "dualseg.train", *words(folder)]
        launched = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        step("all four runs train", runs.train)
        assert len(running()) == 4
        slurm("sbatch", "--partition=high", "--ntasks=6", "--output=/dev/null", "--wrap=sleep 2")
        step("all four are preempted, requeued and resumed", lambda: all(map(len, runs.resumed())))
        first = runs.resumed()
        requeued = max(running())  # of two processes
        slurm("scontrol", "requeue", requeued)
        step(f"Slurm requeues {requeued}, which resumes", lambda: runs.resumed() != first)
        print("waiting: all four finish", flush=True)
        code = launched.wait(PATIENCE)
    finally:
        launched.kill()
    assert code == 0, f"the sweep ended with exit code {code}"
    runs.check()
    resumed = runs.resumed()
    assert all(0 < iteration < ITERATIONS for run in resumed for iteration in run), resumed
    assert sorted(map(len, resumed)) == [1, 1, 1, 2], f"more than one mechanism requeues: {resumed}"
    print(f"passed: four runs finished; they went on from the iterations {resumed}")


def main() -> None:
    if lacking := missing():
        raise SystemExit(f"make test-slurm: {lacking}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemons are ended then as well
    folder = Path(tempfile.mkdtemp(prefix="dualseg-slurm-"))
    Phantom(folder / "phantom", train=6, test=2, shape=SHAPE)  # once, and not by four jobs
    slurm = folder / "slurm"
    slurm.mkdir()
    print(f"A Slurm of one machine in {folder}", flush=True)
    folder.chmod(0o755)
    try:
        with cluster(slurm) as environment:
            root = Path(__file__).resolve().parents[2]
            path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
            sweep(folder, {**environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    except BaseException:
        print(f"failed; logs are in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
