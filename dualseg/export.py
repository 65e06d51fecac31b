"""`dualseg-export run=RUN_FOLDER format=onnx output=DIR`: trained networks for programs without this package."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dualseg.cli import guarded

if TYPE_CHECKING:
    from dualseg.exporting.options import Options

HELP = """dualseg-export run=RUN_FOLDER format=onnx output=DIR

  run            a run folder, wherever it lies; the dataset of the run is not needed
  format         onnx: NETWORK.onnx and NETWORK.json of each network, checked against PyTorch
  output         a new or empty folder
"""


def export(options: "Options") -> Path:
    """Write the folder; returns it.

    Raises:
        DualsegError: whatever the user can mend; nothing is then written.
    """
    from dualseg.exporting.folder import check_output, new_folder
    from dualseg.exporting.options import check_packages
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.preprocessing import scan_source

    run = RunFolder.existing(options.run)
    source = scan_source(run)
    run.checkpoint()
    check_output(options.output)
    check_packages()

    from dualseg.assembly import trained_networks
    from dualseg.exporting.networks import describe
    from dualseg.exporting.onnx_files import write_onnx

    networks = trained_networks(run, source)
    with new_folder(options.output) as folder:
        write_onnx(folder, networks, describe(run, source))
    return options.output


def main() -> None:
    """Console script."""
    words = sys.argv[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        raise SystemExit(0 if words else 2)

    def command() -> None:
        from dualseg.exporting.options import parse_words

        print(f"Exported: {export(parse_words(words))}")

    guarded(command)


if __name__ == "__main__":
    main()
