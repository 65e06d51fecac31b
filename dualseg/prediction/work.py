"""Scan after scan through the predictor: what one does wrong does not stop the others."""

import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from dualseg.cli import DISK_FULL, is_out_of_memory
from dualseg.errors import DualsegError
from dualseg.inference.components import keep_largest
from dualseg.inference.predictor import Predictor
from dualseg.prediction.options import Options
from dualseg.prediction.outputs import PredictionFolder
from dualseg.prediction.review import Row, reasons_to_look
from dualseg.prediction.scans import AnyScan
from dualseg.prediction.words import OUT_OF_MEMORY
from dualseg.reporting.viewer import ReviewPage
from dualseg.runs import provenance


def device_of(word: str) -> torch.device:
    """`device=`. Raises: DualsegError where this machine has no such device."""
    if word == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(word)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DualsegError(f"device={word}: this machine has none; auto takes what there is.")
    return device


def describe(
    options: Options,
    predictor: Predictor,
    class_names: Sequence[str],
    checkpoints: Mapping[str, Any],
    passed_over: Sequence[Path],
    left_out: Mapping[str, int],
) -> dict[str, Any]:
    """prediction.json: how the maps were made. Neither inputs nor the command line, which may name patients.

    Args:
        passed_over: files that are no scans, of which their kinds are counted.
        left_out: kind of DICOM file -> how many added to no scan.
    """
    settings = {key: value for key, value in asdict(options).items() if key not in ("run", "input", "output", "trust")}
    facts = provenance.describe(seed=0, data={})
    return {
        **{key: facts[key] for key in ("dualseg", "versions", "git", "hardware", "started")},
        "predicted_by": dict(checkpoints),
        "networks": predictor.network_names,
        "labels": {name: value for value, name in enumerate(class_names)},
        "windows": [{"patch_size": m.window.patch_size, "stride": m.window.stride} for m in predictor.members],
        "settings": {**settings, "device": str(predictor.device)},
        "passed_over": dict(Counter(file.suffix.lower() for file in passed_over)),
        "left_out": dict(sorted(left_out.items())),
    }


def predict_scans(
    predictor: Predictor,
    scans: Sequence[AnyScan],
    folder: PredictionFolder,
    options: Options,
    channels: int,
    clean: Sequence[int],
) -> list[str]:
    """Predict and write each scan, say so, and keep summary.csv up to date.

    Args:
        channels: that the networks take.
        clean: classes of which the largest component is kept.

    Returns:
        Names of the scans that failed; why is on stderr, and in summary.csv.

    Raises:
        DualsegError: summary.csv or report.html cannot be written.
    """
    rows: list[Row] = []
    with ReviewPage(folder.report_file, folder.class_names, len(scans)) if options.report else nullcontext() as page:
        for scan in scans:
            if not scan.source:
                print(f"{scan.name} is {scan.where}")  # and nothing that is written says so
            began = time.perf_counter()
            row = Row(scan.name, scan.source)
            try:
                _predict_scan(row, predictor, scan, folder, options, channels, clean, page)
            except Exception as error:
                problem = _problem(error, scan.where)
                print(f"{scan.name}: failed. {problem}", file=sys.stderr, flush=True)
                told = problem if scan.source else "was printed, and is not written, for it may name the patient"
                row = Row(scan.name, scan.source, told)  # without what it had been filled with
            else:
                volumes = ", ".join(f"{name} {ml:.2f} ml" for name, ml in row.volumes.items())
                print(f"{scan.name}: {volumes}", flush=True)
            row.seconds = time.perf_counter() - began
            rows.append(row)
            with suppress(DualsegError):  # a full disk, perhaps for the moment: the last one will say so
                folder.write_summary(rows)
        folder.write_summary(rows)
        if page is not None:
            page.write(rows, predictor.network_names)
            print(f"To look through: {page.path}")
    for row, reasons in zip(rows, reasons_to_look(rows), strict=True):
        if reasons:
            print(f"Look at {row.scan}: {', '.join(reasons)}")
    return [row.scan for row in rows if row.problem]


def _predict_scan(
    row: Row,
    predictor: Predictor,
    scan: AnyScan,
    folder: PredictionFolder,
    options: Options,
    channels: int,
    clean: Sequence[int],
    page: ReviewPage | None,
) -> None:
    """Fill `row`, write the maps, and give `page` what it shows."""
    predictor.check(scan.grid(channels), scan.where, options.memory)  # before a voxel of it is read
    image, grid = scan.read(channels)
    doubts = [*scan.doubts(grid), *predictor.doubts(image)]
    row.doubts = tuple(dict.fromkeys(problem.kind for problem in doubts))
    for problem in doubts:
        print(f"warning: {scan.where}: {problem.text}", file=sys.stderr, flush=True)
    keep = [*(["probabilities"] if options.probabilities else [])]
    keep += ["entropy", "disagreement"] if options.uncertainty else ["entropy"] if page is not None else []
    prediction = predictor(image, scan.where, options.memory, folder.path, keep, progress=sys.stderr.isatty())
    if clean:
        keep_largest(prediction.label, clean)
    names = folder.class_names[1:]
    counts = [int((prediction.label == value).sum()) for value in range(1, len(names) + 1)]
    row.volumes = {name: count * grid.voxel_ml for name, count in zip(names, counts, strict=True)}
    row.measures = prediction.measures
    if page is not None:
        assert prediction.entropy is not None
        page.add(scan.name, image, prediction.label, prediction.entropy)
        if not options.uncertainty:
            prediction = replace(prediction, entropy=None)
    folder.write(scan.name, prediction, grid)


def _problem(error: Exception, where: str) -> str:
    """One line that says what is wrong with a scan."""
    if isinstance(error, DualsegError):
        return " ".join(str(error).split())
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{where}: the disk of the output is full ({os.strerror(error.errno)}); free space."
    if is_out_of_memory(error):
        return f"{where}: out of memory ({reason}). {OUT_OF_MEMORY}"
    traceback.print_exc()  # not foreseen: who reads the message needs the place
    return f"{where}: {type(error).__name__}: {reason}"
