"""`dualseg COMMAND ...` and `python -m dualseg COMMAND ...`: all commands under one name."""

import os
import sys
from functools import partial
from importlib import import_module

from dualseg.command.start import Subcommand, run_subcommand

SUMMARIES = {
    "train": "train, evaluate and write one run folder; with -m a sweep of them",
    "evaluate": "score a trained run again, or several as one ensemble",
    "predict": "label maps of new scans",
    "report": "pages and tables of runs, studies and sweeps",
    "check": "what is wrong with a dataset",
    "plan": "how a dataset will be trained on, and why",
    "prepare": "downloads of the benchmarks -> what training reads",
    "export": "trained networks for programs without this package",
    "audit": "gradient of each loss term in each network",
}
OF_HYDRA = ("train", "check", "plan", "audit")  # Hydra completes their arguments in a shell
COMPLETION = ("-sc", "--shell-completion")


def main() -> None:
    """Console script."""
    arguments = sys.argv[1:]
    if {*COMPLETION} & {*arguments[:2]}:
        _complete(arguments)
    else:
        about = "dualseg COMMAND ...: semi-supervised 3-D medical image segmentation"
        run_subcommand(about, {name: Subcommand(text, partial(_run, name)) for name, text in SUMMARIES.items()})


def _run(name: str) -> None:
    import_module(f"dualseg.{name}").main()


def _complete(arguments: list[str]) -> None:
    """Hydra's shell completion. It registers what `sys.argv` names; the shell then asks `dualseg -sc query=SHELL`.

    The line that is typed is in COMP_LINE; Hydra takes its first word alone as the name of the program.
    """
    line = os.environ.get("COMP_LINE")
    if line is None:
        sys.argv = ["dualseg", *(argument for argument in arguments if argument not in SUMMARIES)]
        _run("train")
        return
    name, space, overrides = line.lstrip().partition(" ")[2].lstrip().partition(" ")
    if not space:
        print(*(command for command in SUMMARIES if command.startswith(name)), sep="\n")
    elif name in OF_HYDRA:
        os.environ["COMP_LINE"] = f"dualseg-{name} {overrides}"
        _run(name)


if __name__ == "__main__":
    main()
