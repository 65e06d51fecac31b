"""The project's bounds on speed, each measured against its reference in one run (`make bench`).

    python benchmarks/bench.py                      all of them
    python benchmarks/bench.py step data            some of them
    python benchmarks/bench.py window --windows 9   a part of the volume

Ratios are the result, seconds only explain them; keep the machine otherwise idle. Exit code 1 if a bound fails.
"""

import argparse
import importlib
import multiprocessing
import os
import platform
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

OPTIONS = {
    "step": ("base_channels",),
    "data": (),
    "window": ("base_channels", "windows", "la_root"),
    "metrics": ("la_root",),
    "collect": (),
    "multirun": (),
    "curves": (),
}
"""Measurement, which is the module of that name, and the options that its `run` takes."""


def measure(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """`run` of one measurement: `subject` (what was timed), `facts` and `checks` (what, value, bound); peak memory."""
    import torch

    result = importlib.import_module(name).run(**options)
    result["threads"] = torch.get_num_threads()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    result["facts"]["peak memory of the whole process"] = f"{peak / 2**30:.2f} GiB"
    return result


def main() -> int:
    """Run the chosen measurements, each in a process of its own, and print them; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", nargs="*", metavar="MEASUREMENT", help=f"of {', '.join(OPTIONS)}; default: all")
    parser.add_argument("--base-channels", type=int, help="width of the networks in step and window (16)")
    parser.add_argument("--windows", type=int, help="at most so many of the volume's 45 windows (45)")
    parser.add_argument("--la-root", type=Path, help="folder of <case>/mri_norm2.h5 ($DUALSEG_LA_ROOT; else phantoms)")
    arguments = parser.parse_args()
    unknown = set(arguments.measurements) - set(OPTIONS)
    if unknown:
        parser.error(f"no measurement {', '.join(sorted(unknown))}; choose from {', '.join(OPTIONS)}")

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs", flush=True)
    rows = []
    for name in [n for n in OPTIONS if n in (arguments.measurements or OPTIONS)]:
        given = {key: value for key in OPTIONS[name] if (value := getattr(arguments, key)) is not None}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            result = process.submit(measure, name, given).result()
        print(f"\n{name}, {result['threads']} threads: {result['subject']}")
        for fact, value in result["facts"].items():
            print(f"  {fact}: {value}")
        sys.stdout.flush()
        rows += [(name, what, value, bound) for what, value, bound in result["checks"]]

    width = max(len(what) for _, what, _, _ in rows)
    print(f"\n{'':8}  {'measured':{width}}  {'value':>8}  {'bound':>8}")
    for name, what, value, bound in rows:
        print(f"{name:8}  {what:{width}}  {value:8.3g}  {bound:8.3g}  {'PASS' if value <= bound else 'FAIL'}")
    return 0 if all(value <= bound for _, _, value, bound in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
