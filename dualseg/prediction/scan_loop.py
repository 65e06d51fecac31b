"""Scan after scan through the predictor: what one does wrong does not stop the others."""

import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from dualseg.errors import DISK_FULL, DualsegError
from dualseg.inference.predictor import Predictor
from dualseg.machine import is_out_of_memory
from dualseg.prediction.inputs import Found
from dualseg.prediction.options import OUT_OF_MEMORY, PredictionOptions, classes_to_clean
from dualseg.prediction.outputs import PredictionFolder
from dualseg.prediction.record import PredictionRecord
from dualseg.prediction.review import Row, unlike_labels
from dualseg.prediction.scans import AnyScan
from dualseg.prediction.viewer import ReviewPage
from dualseg.training import provenance
from dualseg.views.components import keep_largest


def device_of(word: str) -> torch.device:
    """`device=`. Raises: DualsegError where this machine has no such device."""
    if word == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(word)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DualsegError(f"device={word}: this machine has none; auto takes what there is.")
    return device


def describe(made_by: Mapping[str, Any], predictor: Predictor) -> dict[str, Any]:
    """prediction.json, but for what is found among the inputs: how the maps are made.

    Args:
        made_by: see `dualseg.prediction.record.made_by`.
    """
    return {
        **_circumstances(),
        **made_by,
        "networks": predictor.network_names,
        "windows": [{"patch_size": m.window.patch_size, "stride": m.window.stride} for m in predictor.members],
        "settings": {**made_by["settings"], "device": str(predictor.device)},
        "resumed": [],
    }


def _circumstances() -> dict[str, Any]:
    facts = provenance.describe(seed=0, data={})
    return {key: facts[key] for key in ("dualseg", "versions", "git", "hardware", "started")}


def begin(record: PredictionRecord, made_by: Mapping[str, Any], predictor: Predictor, found: Found) -> None:
    """Write prediction.json before the first scan: of a start that goes on, when and with which versions it did.

    Args:
        found: among the inputs; what is no scan is counted by kind.

    Raises:
        DualsegError: it cannot be written.
    """
    if not record.content:
        record.content = describe(made_by, predictor)
    else:
        again = _circumstances()
        for what, there, now in (
            ("dualseg", record.content["dualseg"], again["dualseg"]),
            ("torch", record.content["versions"]["torch"], again["versions"]["torch"]),
        ):
            if there != now and record.kept:
                print(
                    f"warning: {len(record.kept)} scans were predicted with {what} {there}, this is {now}",
                    file=sys.stderr,
                )
        record.content["resumed"].append({"scans": len(record.kept), **again})
        record.content["settings"]["report"] = made_by["settings"]["report"]
    record.content["passed_over"] = dict(Counter(file.suffix.lower() for file in found.passed_over))
    record.content["left_out"] = dict(sorted(found.left_out.items()))
    record.write()


def predict_scans(
    predictor: Predictor,
    scans: Sequence[AnyScan],
    folder: PredictionFolder,
    record: PredictionRecord,
    options: PredictionOptions,
    channels: int,
    page: ReviewPage | None,
    labeled: Sequence[Mapping[str, tuple[float, float]]],
) -> dict[str, Row]:
    """Predict and write each scan, say so, and keep `record` and summary.csv up to date.

    Args:
        scans: those that are to be predicted.
        channels: that the networks take.
        labeled: of each run, see `unlike_labels`.

    Returns:
        Name -> row of the scans that failed; why is on stderr, too.
    """
    failed: dict[str, Row] = {}
    clean = classes_to_clean(options.keep_largest or (), folder.class_names)
    for scan in scans:
        began = time.perf_counter()
        row = Row(scan.name, scan.source)
        try:
            _predict_scan(row, predictor, scan, folder, options, channels, clean, page)
        except Exception as error:
            problem = _problem(error, scan.where)
            print(f"{scan.name}: failed. {problem}", file=sys.stderr, flush=True)
            told = problem if scan.source else "was printed, and is not written, for it may name the patient"
            row = failed[scan.name] = Row(scan.name, scan.source, told)  # without what it had been filled with
        else:
            row.doubts += tuple(unlike_labels(row.volumes, labeled))
            volumes = ", ".join(f"{name} {ml:.2f} ml" for name, ml in row.volumes.items())
            print(f"{scan.name}: {volumes}", flush=True)
            record.scans[scan.name].row = row
        row.seconds = time.perf_counter() - began
        with suppress(DualsegError):  # a full disk, perhaps for the moment: the last one will say so
            record.write()
            folder.write_summary(record.rows(failed))
    return failed


def _predict_scan(
    row: Row,
    predictor: Predictor,
    scan: AnyScan,
    folder: PredictionFolder,
    options: PredictionOptions,
    channels: int,
    clean: Sequence[int],
    page: ReviewPage | None,
) -> None:
    """Fill `row`, write the maps, and give `page` what it shows."""
    predictor.check(scan.grid(channels), scan.where, options.memory_limit)  # before a voxel of it is read
    image, grid = scan.read(channels)
    doubts = [*scan.doubts(grid), *predictor.doubts(image)]
    row.doubts = tuple(dict.fromkeys(problem.kind for problem in doubts))
    for problem in doubts:
        print(f"warning: {scan.where}: {problem.text}", file=sys.stderr, flush=True)
    keep = [*(["probabilities"] if options.probabilities else [])]
    keep += ["entropy", "disagreement"] if options.uncertainty else ["entropy"] if page is not None else []
    prediction = predictor(image, scan.where, options.memory_limit, folder.path, keep, progress=sys.stderr.isatty())
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
