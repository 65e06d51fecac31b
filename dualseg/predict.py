"""`dualseg-predict run=RUN_FOLDER input=PATH ... output=DIR`: label maps of new scans, on the scans' own grids."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dualseg.command.start import run_with_arguments
from dualseg.errors import DualsegError
from dualseg.prediction.options import OUT_OF_MEMORY, PredictionOptions
from dualseg.signals import resumable

if TYPE_CHECKING:
    from dualseg.data.volumes import VolumeSource
    from dualseg.prediction.outputs import PredictionFolder
    from dualseg.runs.folder import RunFolder
    from dualseg.training.trusted import Trust

USAGE = "dualseg-predict run=RUN_FOLDER [run=RUN_FOLDER ...] input=PATH [PATH ...] output=DIR [key=value ...]"
NOTE = "A scan that fails, or may be one and is not read, does not stop the others; the exit code is then 2."


def predict(options: PredictionOptions) -> Path:
    """Predict every scan that the folder does not have yet; returns the folder with what was written.

    Raises:
        DualsegError: whatever the user can fix, before the first scan; or, after all others, scans have failed.
    """
    from dualseg.prediction.options import classes_to_clean
    from dualseg.prediction.outputs import PredictionFolder
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.lock import writing
    from dualseg.runs.tables import poorly_found_of
    from dualseg.runs.verdict import recommended, verification
    from dualseg.training.preprocessing import scan_source
    from dualseg.training.trusted import Trust

    named = [recommended(run) for run in options.run]
    runs = [RunFolder.existing(run) for one in named for run in one.runs]
    if decided := tuple(dict.fromkeys(name for one in named for name in one.keep_largest)):
        kept = decided if options.keep_largest is None else options.keep_largest
        options = replace(options, keep_largest=kept)
        print(f"Largest component alone: {', '.join(kept)}")
    for said in dict.fromkeys(filter(None, map(verification, runs))):
        print(f"Gain from unlabeled scans in training: {said}")
    for run in runs:
        with suppress(DualsegError):  # a damaged result keeps nobody from predicting
            if run.finished and (warning := poorly_found_of(run)):
                print(f"warning: {run.path}: {warning}", file=sys.stderr)
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
    class_names = sources[0].class_names
    classes_to_clean(options.keep_largest or (), class_names)
    if options.report and len(class_names) > 256:  # what draws them there keeps them in 8 bits
        raise DualsegError(f"report=true: the page shows 256 classes, the run has {len(class_names)}; leave it out.")
    folder = PredictionFolder(options.output, class_names)
    folder.check(options.input)
    with writing(folder.path, "choose another output=..."):
        _predict(options, runs, sources, trust, folder)
    return folder.path


def _predict(
    options: PredictionOptions,
    runs: "Sequence[RunFolder]",
    sources: "Sequence[VolumeSource]",
    trust: "Trust",
    folder: "PredictionFolder",
) -> None:
    from dualseg.data.dicom import left_out_line
    from dualseg.data.not_read import some
    from dualseg.prediction.inputs import find_scans
    from dualseg.prediction.record import made_by
    from dualseg.prediction.review import reasons_to_look
    from dualseg.prediction.viewer import ReviewPage, copies_of, is_finished

    by = made_by(options, runs, folder.class_names)
    record = folder.record(by)
    found = find_scans(options.input, sources[0].channels, options.identifiers, record.scans)
    scans, passed_over = found.scans, found.passed_over
    if passed_over:
        print(f"Passed over as no scans: {len(passed_over)} files ({some(passed_over)})", file=sys.stderr)
    if found.left_out:
        print(left_out_line(found.left_out), file=sys.stderr)
    named = {*record.scans}
    copies = copies_of(folder.report_file) if options.report else None
    record.take(scans, lambda scan: folder.holds(scan, record.kinds))
    done = record.kept
    for_page = {scan.name for scan in scans if scan.name in done} - {*copies} if copies is not None else set()
    todo = [scan for scan in scans if scan.name not in done or scan.name in for_page]
    for scan in scans:
        if not scan.source:
            print(f"{scan.name} is {scan.where}")  # and nothing that is written says so
    failed, page = {}, None
    window = sources[0].display_window
    new_page = partial(ReviewPage, folder.report_file, folder.class_names, len(scans), window)
    if len(todo) < len(scans):
        print(f"{len(scans) - len(todo)} of {len(scans)} scans are predicted already")
    if for_page:
        print(f"{len(for_page)} of {len(scans)} scans are predicted again, for the page")
    if todo:
        from dualseg.planning.plan_file import labeled_volumes
        from dualseg.prediction.scan_loop import begin, device_of, predict_scans
        from dualseg.training.trained import build_predictor

        device = device_of(options.device)
        record.check_device(str(device))
        predictor = build_predictor(runs, sources, trust, options.overlap, options.mirror, device)
        folder.open()
        page = new_page() if options.report else None
        begin(record, by, predictor, found)
        labeled = [labeled_volumes(run.plan_file) for run in runs]
        for name in {*named, *record.scans} - {*record.kept}:
            folder.remove(name)  # of a file that has changed, or from a killed process
        with resumable(f"Finished scans are kept in {folder.path}: give the same command again to go on."):
            failed = predict_scans(predictor, todo, folder, record, options, sources[0].channels, page, labeled)
        record.write()
    elif options.report and not is_finished(folder.report_file):
        page = new_page()
    rows = record.rows(failed)
    folder.write_summary(rows)
    if page is not None:
        page.write(rows, record.content["networks"])
    if options.report:
        print(f"To look through: {folder.report_file}")
    for row, reasons in zip(rows, reasons_to_look(rows), strict=True):
        if reasons:
            print(f"Look at {row.scan}: {', '.join(reasons)}")
    if failed:
        what = "the only scan" if len(scans) == 1 else f"{len(failed)} of {len(scans)} scans"
        raise DualsegError(f"{what} failed, see above: {', '.join(failed)}. All others are in {folder.path}.")


def _say_where(folder: Path) -> None:
    print(f"Label maps: {folder / 'labels'}", f"Volumes:    {folder / 'summary.csv'}", sep="\n")


def main() -> None:
    """Console script."""
    run_with_arguments(
        lambda options: _say_where(predict(options)),
        PredictionOptions,
        USAGE,
        note=NOTE,
        out_of_memory=OUT_OF_MEMORY,
    )


if __name__ == "__main__":
    main()
