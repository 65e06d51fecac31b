"""`dualseg-export run=RUN_FOLDER format=onnx|bundle output=DIR`: trained networks for programs without this package."""

from dataclasses import dataclass, field
from pathlib import Path

from dualseg.arguments import one_of
from dualseg.command.start import run_with_arguments

USAGE = "dualseg-export run=RUN_FOLDER format=onnx|bundle output=DIR"

OUT_OF_MEMORY = "Networks are exported at data.patch_size of their run; export on a machine with more memory."

FORMATS = ("onnx", "bundle")


@dataclass(frozen=True)
class ExportOptions:
    """What the command line asks for, read by `dualseg.command.grammar`; --help and docs/reference.md say the same.

    Attributes:
        run: a run folder, wherever it lies; the dataset of the run is not needed
        format: onnx: NETWORK.onnx and NETWORK.json of each network, checked against PyTorch; bundle: a MONAI Bundle,
            which predicts scans on a machine that has MONAI alone; of runs of data=folder, brats and phantom, since
            what la and pancreas do to a scan takes more than MONAI
        output: a new or empty folder
        trust: a network or dataset of your own that the run folder names, such as my_networks.MyNet; given again for
            each. Those of dualseg, MONAI and torch need none. Its module is run: for a folder from somebody else, give
            it only where you know that code

    Raises:
        DualsegError: an unknown format.
    """

    run: Path = field(metadata={"value": "RUN_FOLDER"})
    format: str = field(metadata={"value": "|".join(FORMATS)})
    output: Path = field(metadata={"value": "DIR"})
    trust: tuple[str, ...] = field(default=(), metadata={"again": True})

    def __post_init__(self) -> None:
        one_of("format", self.format, FORMATS)


def export(options: ExportOptions) -> Path:
    """Write the folder; returns it.

    Raises:
        DualsegError: whatever the user can fix; nothing is then written.
    """
    from dualseg.exporting.folder import check_output, new_folder
    from dualseg.exporting.packages import check_packages
    from dualseg.runs.folder import RunFolder
    from dualseg.training.preprocessing import scan_source
    from dualseg.training.trusted import Trust

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
    from dualseg.prediction.options import PredictionOptions as Prediction
    from dualseg.training.trained import build_predictor

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
    run_with_arguments(
        lambda options: print(f"Exported: {export(options)}"), ExportOptions, USAGE, out_of_memory=OUT_OF_MEMORY
    )


if __name__ == "__main__":
    main()
