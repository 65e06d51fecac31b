"""What one GPU does, in two calls that fit a machine lent for ten minutes each (`make gpu PART=check`, `PART=run`).

    python benchmarks/gpu.py check OUT                         GPU tests; speed of steps at the paper's size
    python benchmarks/gpu.py run OUT --la-root DIR mix_8 ...   rows of sweep=la_mix at full size, training to scores
    python benchmarks/gpu.py check OUT --rehearse              tiny and on the CPU: whether all of it runs

`check` trains each of `STEPS` in a process of its own. All compile at once; then one after the other has the GPU to
itself, and is timed, profiled and compared with the bare passes of its networks. Each writes OUT/STEP.json and .txt.

`run` trains several rows at once, KEY=VALUE words are for all of them. Of each, OUT gets a .tar.gz of the run's folder
without its checkpoints, and the record's weights in float16 in pieces (cat NAME.pt.* > NAME.pt).
"""

import argparse
import fcntl
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from training import training

from dualseg.methods import SegmentationMethod
from dualseg.methods.compiling import next_iteration
from dualseg.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "supervised": "method=supervised",
    "dual": "method=dual",
    "solo_mix": "method=solo_mix method.pretraining=0",
    "dual_mix": "method=dual_mix method.pretraining=0",
}
COMPILED, CONTIGUOUS = "trainer.compile=true", "trainer.channels_last=false"
STEPS = {
    **METHODS,
    **{f"{name}-compiled": f"{words} {COMPILED}" for name, words in METHODS.items()},
    **{f"{name}-contiguous": f"{METHODS[name]} {CONTIGUOUS}" for name in ("supervised", "solo_mix")},
    "solo_mix-contiguous-compiled": f"{METHODS['solo_mix']} {CONTIGUOUS} {COMPILED}",
}
"""Name -> words. Four patches an iteration go through each trained network: 2 + 2, four labeled ones, or four mixed."""
PAPER = ["data.patch_size=[112,112,80]", "data.stride=[18,18,4]", "trainer.precision=bf16-mixed"]
PAPER += ["+data.source.shape=[144,144,96]"]
TINY = ["data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "base_channels=4", "+data.source.shape=[24,24,20]"]
TINY_RUN = ["base_channels=2", "data.downsample=4", "data.patch_size=[32,32,16]", "data.stride=[32,32,16]"]
TINY_RUN += ["trainer.max_iterations=4", "trainer.accelerator=cpu"]
FIRST, SETTLED, TIMED, PROFILED = 3, 4, 20, 3  # iterations: beside others; alone but not yet counted; counted
PATIENCE = 150.0  # seconds that a process waits for the others to have compiled
LARGEST_FILE = 15 * 2**20  # bytes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("check", "run", "step"))
    parser.add_argument("out", type=Path, help="folder for what is measured; step: of one process of check")
    parser.add_argument("names", nargs="*", help="of STEPS; run: ROW or ROW:SEED, KEY=VALUE")
    parser.add_argument("--la-root", type=Path, help="run: folder of <case>/mri_norm2.h5")
    parser.add_argument("--shared", type=Path, help="step: folder that the processes of check share")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    given = parser.parse_intermixed_args()
    given.words = [name for name in given.names if "=" in name]
    given.rows = [name for name in given.names if "=" not in name]
    if given.part == "run" and (not given.rows or given.la_root is None):
        parser.error("run: needs rows of sweep=la_mix, such as mix_8, and --la-root (make: ROWS=, LA_ROOT=)")
    if given.part == "check" and (unknown := {*given.names} - {*STEPS}):
        parser.error(f"check: no step {', '.join(sorted(unknown))}; choose from {', '.join(STEPS)}")
    return given


def environment_of(threads: int, compiling: int) -> dict[str, str]:
    """Of a process beside others; the package need not be installed."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    counts = {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": str(compiling)}
    return {**os.environ, **counts, "PYTHONPATH": path}


# check


class Queue:
    """Processes that get ready side by side and then take turns.

    Args:
        folder: that they share.
        names: of all of them.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def over(self, name: str) -> None:
        """Nobody need wait for this one any more."""
        (self.folder / f"{name}.ready").touch()

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Once all are ready, or have failed, the body runs while no other one's does."""
        self.over(name)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not all((self.folder / f"{other}.ready").exists() for other in self.names):
            time.sleep(0.1)
        with (self.folder / "turn").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Any, repeats: int) -> float:
    """Seconds of one call, after one that does not count."""
    work()
    wait_for_device()
    begun = time.perf_counter()
    for _ in range(repeats):
        work()
    wait_for_device()
    return (time.perf_counter() - begun) / repeats


class Measured(pl.Callback):
    """Times the training loop from iteration to iteration, profiles it, and times the bare passes of its networks."""

    def __init__(self, name: str, queue: Queue, out: Path) -> None:
        self.name, self.queue, self.out = name, queue, out
        self.found: dict[str, Any] = {"step": name}
        self.waited = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = self.ended = time.perf_counter()
        torch.backends.cudnn.benchmark = False  # tried beside others, the wrong algorithm would win

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, number: int) -> None:
        self.waited += time.perf_counter() - self.ended
        if number == FIRST:
            self.found["seconds of the first iterations"] = time.perf_counter() - self.began
            self.alone = self.queue.turn(self.name)
            self.alone.__enter__()
            torch.backends.cudnn.benchmark = torch.cuda.is_available()
        elif number == FIRST + SETTLED:
            wait_for_device()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            self.began, self.waited = time.perf_counter(), 0.0
        elif number == FIRST + SETTLED + TIMED:
            wait_for_device()
            seconds = time.perf_counter() - self.began
            # of the host, which may wait for the GPU there
            self.found |= {"seconds": seconds / TIMED, "share between iterations": self.waited / seconds}
            if torch.cuda.is_available():
                self.found["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
            activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
            self.profile = profile(activities=activities)
            self.profile.start()
            self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        self.ended = time.perf_counter()
        if number == FIRST + SETTLED + TIMED + PROFILED - 1:
            wait_for_device()
            self.read_profile((time.perf_counter() - self.began) / PROFILED)
            assert isinstance(pl_module, SegmentationMethod)
            self.found |= bare_passes(pl_module, batch.labeled.image if pl_module.mixes else batch.image)
            (self.out / f"{self.name}.json").write_text(json.dumps(self.found, indent=1))
            self.alone.__exit__(None, None, None)

    def read_profile(self, seconds: float) -> None:
        self.profile.stop()
        events = self.profile.key_averages()
        on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        kernels = [event for event in on_gpu if not event.is_user_annotation]  # which span kernels and gaps
        busy = sum(event.self_device_time_total for event in kernels) / 1e6 / PROFILED
        self.found |= {"seconds profiled": seconds, "seconds of kernels": busy}
        by = "self_device_time_total" if kernels else "self_cpu_time_total"
        tables = (
            events.table(sort_by=key, row_limit=40, max_name_column_width=90) for key in (by, "self_cpu_time_total")
        )
        (self.out / f"{self.name}.txt").write_text("\n".join(tables))


def bare_passes(method: SegmentationMethod, image: torch.Tensor) -> dict[str, float]:
    """Seconds of forward and backward of the trained networks and forward of the averages, without loss or step.

    Compiled where the method's own passes are. `floor`: seconds in which the GPU's memory carries what their
    convolutions read and write, in 16 bits: three passes of a trained network, one of an average.
    """
    passes = {name: method._compiled.get(name, network) for name, network in method.networks.items()}
    gradients: dict[str, list[torch.Tensor]] = {}

    def once() -> None:
        if method._compiled:
            next_iteration()
        with torch.autocast(image.device.type, torch.bfloat16, enabled=image.is_cuda):
            for name in method.averages:
                with torch.no_grad():
                    passes[name](image)
            for name in method.takes:
                output = passes[name](image)
                logits = [output.logits, *(z for key, z in output.others.items() if key.startswith("logits"))]
                if name not in gradients:
                    gradients[name] = [torch.randn_like(z) / z.numel() for z in logits]
                torch.autograd.backward(logits, gradients[name])
        for parameter in method.parameters():
            parameter.grad = None

    seconds = timed(once, 10)
    carried = sum(
        convolution_bytes(network, image) * (3 if name in method.takes else 1)
        for name, network in method.networks.items()
    )
    block = torch.empty(2**30 if image.is_cuda else 2**20, dtype=torch.uint8, device=image.device)
    rate = 2 * block.numel() / timed(lambda: block.clone(), 10)
    return {"seconds of bare passes": seconds, "floor": carried / rate, "TB/s": rate / 1e12}


@torch.no_grad()
def convolution_bytes(network: nn.Module, image: torch.Tensor) -> int:
    """What all convolutions of a forward pass read and write, two bytes a value."""
    counts: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _, given, made: counts.append(given[0].numel() + made.numel()))
        for module in network.modules()
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
    ]
    network(image)
    for hook in hooks:
        hook.remove()
    return 2 * sum(counts)


def step(out: Path, name: str, names: Sequence[str], shared: Path, rehearse: bool) -> None:
    """One process of `check`."""
    queue = Queue(shared, names)
    try:
        words = [*STEPS[name].split(), *(TINY if rehearse else PAPER), f"name={name}", "data.labeled=4"]
        words += ["evaluate_on=[]", "trainer.log_every=100"]
        total = FIRST + SETTLED + TIMED + PROFILED
        _, data, method, trainer = training(shared, total, words, "cpu" if rehearse else "gpu")
        if COMPILED in words:
            method.compile_networks()
        trainer.callbacks.append(Measured(name, queue, out))  # type: ignore[attr-defined]
        trainer.fit(method, data)
    finally:
        queue.over(name)


def check(out: Path, names: Sequence[str], rehearse: bool) -> int:
    """Tests and steps side by side, then the steps in turn; prints a table. The exit code."""
    environment = environment_of(threads=1, compiling=4)
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder)
        words = [*(TINY if rehearse else PAPER), "method=supervised", "name=volumes", "data.labeled=4"]
        training(shared, 1, [*words, "trainer.precision=32-true"])  # makes the volumes
        processes = []
        for name in names:
            command = [sys.executable, __file__, "step", str(out), name, *names, "--shared", folder]
            command += ["--rehearse"] * rehearse
            log = (out / f"{name}.log").open("w")
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        if not rehearse:
            log = (out / "tests.log").open("w")
            tests = [sys.executable, "-m", "pytest", "-q", "-n", "4", "-m", "gpu", "tests/test_gpu.py"]
            processes.append(subprocess.Popen(tests, stdout=log, stderr=log, env=environment, cwd=ROOT))
        codes = [process.wait() for process in processes]
    print(f"exit codes: {codes}")
    heads = ("its/s", "s", "kernels", "bare", "floor", "between", "GiB", "first")
    print(f"{'step':30}", *(f"{head:>8}" for head in heads))
    keys = ("seconds", "seconds of kernels", "seconds of bare passes", "floor", "share between iterations", "peak GiB")
    for name in names:
        file = out / f"{name}.json"
        if file.exists():
            found = json.loads(file.read_text())
            values = [found.get(key, 0.0) for key in (*keys, "seconds of the first iterations")]
            print(f"{name:30}", *(f"{value:8.4f}" for value in (1 / values[0], *values)))
        else:
            print(f"{name:30} failed; see {name}.log")
    return max(map(abs, codes))


# run


def run(out: Path, rows: Sequence[str], words: Sequence[str], la_root: Path, rehearse: bool) -> int:
    """Rows of sweep=la_mix side by side; what they made, packed. The exit code."""
    environment = environment_of(threads=2, compiling=6)
    size = TINY_RUN if rehearse else ["trainer.precision=bf16-mixed"]
    with tempfile.TemporaryDirectory() as folder:
        processes = {}
        for row in rows:
            variant, _, seed = row.partition(":")
            command = [sys.executable, "-m", "dualseg.train", "-m", "sweep=la_mix", "scale=full", f"variant={variant}"]
            command += [f"seed={seed or 0}", f"output={folder}/{variant}-{seed or 0}", f"data.root={la_root}"]
            command += ["data.held_out_test=20", *size, *words]
            log = (out / f"{variant}-{seed or 0}.log").open("w")
            processes[row] = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        codes = {row: process.wait() for row, process in processes.items()}
        for manifest in sorted(Path(folder).glob("*/*/manifest.json")):
            pack(RunFolder(manifest.parent), out)
    print(f"exit codes: {codes}. To collect: unpack into one folder DIR, give the sweep with output=DIR there, then")
    print("dualseg-report study la_mix runs=DIR")
    return max(map(abs, codes.values()))


def pack(run: RunFolder, out: Path) -> None:
    """A run's folder without checkpoints as OUT/NAME.tar.gz; the record's weights, in float16, as OUT/NAME.pt.*."""
    with tarfile.open(out / f"{run.path.name}.tar.gz", "w:gz") as archive:
        archive.add(run.path, run.path.name, filter=lambda member: None if member.name.endswith(".ckpt") else member)
    checkpoints = sorted(run.checkpoints.glob("*.ckpt"))
    if not checkpoints:
        return
    loaded = torch.load(checkpoints[-1], map_location="cpu", weights_only=False)
    prefix = f"networks.{loaded['dualseg']['record']}."
    weights = {key: value.half() for key, value in loaded["state_dict"].items() if key.startswith(prefix)}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    content = buffer.getvalue()
    for number, start in enumerate(range(0, len(content), LARGEST_FILE)):
        (out / f"{run.path.name}.pt.{number}").write_bytes(content[start : start + LARGEST_FILE])


def main() -> int:
    given = arguments()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if given.part == "step":
        step(out, given.names[0], given.names[1:], given.shared, given.rehearse)
        return 0
    if given.part == "check":
        return check(out, given.names or list(STEPS), given.rehearse)
    return run(out, given.rows, given.words, given.la_root.resolve(), given.rehearse)


if __name__ == "__main__":
    sys.exit(main())
