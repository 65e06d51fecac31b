"""`dualseg-predict run=RUN_FOLDER input=PATH ... output=DIR`: label maps of new scans, on the scans' own grids."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dualseg.cli import run_with_words
from dualseg.errors import DualsegError
from dualseg.prediction.words import KEYS, OUT_OF_MEMORY
from dualseg.signals import resumable
from dualseg.words import help_of

if TYPE_CHECKING:
    from dualseg.prediction.options import Options

USAGE = "dualseg-predict run=RUN_FOLDER [run=RUN_FOLDER ...] input=PATH [PATH ...] output=DIR [key=value ...]"
NOTE = "A scan that fails, or may be one and is not read, does not stop the others; the exit code is then 2."


def predict(options: "Options") -> Path:
    """Predict every scan; returns the folder with what was written.

    Raises:
        DualsegError: whatever the user can mend, before the first scan; or, after all others, scans have failed.
    """
    from dualseg.data.dicom import left_out_line
    from dualseg.data.not_read import some
    from dualseg.prediction.options import classes_to_clean
    from dualseg.prediction.outputs import PredictionFolder
    from dualseg.prediction.scans import find_scans
    from dualseg.runs.evaluation import checkpoints_of
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.preprocessing import scan_source
    from dualseg.runs.trusted import Trust

    runs = [RunFolder.existing(run) for run in options.run]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise DualsegError("run: the same run folder is given twice.")
    trust = Trust(options.trust)
    for run in runs:
        trust.check(run.config(), run.config_file)
    sources = [scan_source(run, trust) for run in runs]
    for run, source in zip(runs[1:], sources[1:], strict=True):
        for what in ("class_names", "channels"):
            first, other = getattr(sources[0], what), getattr(source, what)
            if first != other:
                raise DualsegError(f"{run.path}: {what} are {other}, those of {runs[0].path} {first}; no ensemble.")
    class_names, channels = sources[0].class_names, sources[0].channels
    clean = classes_to_clean(options.keep_largest, class_names)
    if options.report and len(class_names) > 256:  # what draws them there keeps them in 8 bits
        raise DualsegError(f"report=true: the page shows 256 classes, the run has {len(class_names)}; leave it out.")
    folder = PredictionFolder(options.output, class_names)
    folder.check(options.input)
    scans, passed_over, left_out = find_scans(options.input, channels, options.identifiers)
    if passed_over:
        print(f"Passed over as no scans: {len(passed_over)} files ({some(passed_over)})", file=sys.stderr)
    if left_out:
        print(left_out_line(left_out), file=sys.stderr)
    checkpoints = checkpoints_of(runs)

    from dualseg import assembly
    from dualseg.prediction.work import describe, device_of, predict_scans

    device = device_of(options.device)
    predictor = assembly.build_predictor(runs, sources, trust, options.overlap, options.mirror, device)
    folder.open(describe(options, predictor, class_names, checkpoints, passed_over, left_out))
    with resumable(f"Finished scans are kept in {folder.path}: give the same command again to go on."):
        failed = predict_scans(predictor, scans, folder, options, channels, clean)
    if failed:
        what = "the only scan" if len(scans) == 1 else f"{len(failed)} of {len(scans)} scans"
        raise DualsegError(f"{what} failed, see above: {', '.join(failed)}. All others are in {folder.path}.")
    return folder.path


def main() -> None:
    """Console script."""

    def command(words: list[str]) -> None:
        from dualseg.prediction.options import parse_words

        print(f"Predictions: {predict(parse_words(words))}")

    run_with_words(command, help_of(USAGE, KEYS, NOTE), OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
