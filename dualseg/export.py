"""`dualseg-export run=RUN_FOLDER format=onnx|bundle output=DIR`: trained networks for programs without this package."""

from pathlib import Path
from typing import TYPE_CHECKING

from dualseg.cli import run_with_words
from dualseg.exporting.words import KEYS
from dualseg.words import help_of

if TYPE_CHECKING:
    from dualseg.exporting.options import Options

USAGE = "dualseg-export run=RUN_FOLDER format=onnx|bundle output=DIR"

OUT_OF_MEMORY = "Networks are exported at data.patch_size of their run; export on a machine with more memory."


def export(options: "Options") -> Path:
    """Write the folder; returns it.

    Raises:
        DualsegError: whatever the user can mend; nothing is then written.
    """
    from dualseg.exporting.folder import check_output, new_folder
    from dualseg.exporting.options import check_packages
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.trusted import Trust
    from dualseg.training.preprocessing import scan_source

    run = RunFolder.existing(options.run)
    trust = Trust(options.trust)
    trust.check(run.config(), run.config_file)
    source = scan_source(run, trust)
    run.checkpoint()
    check_output(options.output)
    if options.format == "onnx":
        check_packages()

    import torch

    from dualseg.exporting.bundle import write_bundle
    from dualseg.exporting.networks import describe
    from dualseg.prediction.options import Options as Prediction
    from dualseg.training.assembly import build_predictor

    # as dualseg-predict has them, unless it is told otherwise
    cpu = torch.device("cpu")
    (member,) = build_predictor([run], [source], trust, Prediction.overlap, Prediction.mirror, cpu).members
    facts = describe(run, source)
    with new_folder(options.output) as folder:
        if options.format == "onnx":
            from dualseg.exporting.onnx_files import write_onnx  # its packages are an extra

            write_onnx(folder, member.networks, facts)
        else:
            write_bundle(folder, member, source, facts)
    return options.output


def main() -> None:
    """Console script."""

    def command(words: list[str]) -> None:
        from dualseg.exporting.options import parse_words

        print(f"Exported: {export(parse_words(words))}")

    run_with_words(command, help_of(USAGE, KEYS), OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
