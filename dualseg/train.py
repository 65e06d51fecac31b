"""`dualseg-train`: from a configuration to a finished run folder; started again, it resumes."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from dualseg.command.start import run_with_hydra
from dualseg.processes import as_rank
from dualseg.signals import resumable
from dualseg.studies.job import run_job

OUT_OF_MEMORY = (
    "Lower data.patch_size, batch.labeled and batch.unlabeled, inference.batch_size or base_channels, raise "
    "data.downsample, or use trainer.precision=bf16-mixed on a GPU; "
    "a data.num_workers of 1 leaves the volumes in the host's memory."
)


def train(config: Any) -> None:
    """Train, evaluate and write the run folder of a composed configuration, here or in a group of processes.

    A finished run is not repeated.

    Raises:
        DualsegError: whatever the user can fix; nothing half-written is left behind.
        SystemExit: a group failed, and has said why.
    """
    from dualseg.processes import in_group, is_slurm_task, processes_of, rank
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.replaced import recover
    from dualseg.training.group import run_group
    from dualseg.training.settings import resolve

    settings = resolve(config)
    folder = RunFolder.of(settings)
    if config.get("dry"):
        from dualseg.runs.claim import check_claim
        from dualseg.runs.lock import is_locked
        from dualseg.studies.timing import plan_of_run

        locked = is_locked(folder.path)
        if not locked:  # how far a run is may be asked while it is written
            check_claim(folder, settings)
        if rank() == 0:  # of the tasks of `srun`
            print(plan_of_run(settings), flush=True)
            if not locked and not _is_finished(settings, folder):
                _try(settings, folder)
        return
    if settings["overwrite"] and folder.resumes_in_slurm(settings):
        settings["overwrite"] = False
    if not _is_to_do(settings):
        return
    processes = 1 if in_group() or is_slurm_task() else processes_of(settings["trainer"])
    if processes == 1:
        train_here(settings)
        return
    ending = run_group(sys.argv[1:], processes)
    recover(folder.path, reading=False)  # the first rank may have been killed
    if ending.code:
        raise SystemExit(ending.code)


def _try(settings: dict[str, Any], folder: Any) -> None:
    """`dry=true`: the data are there, and the method and its networks can be built, also the user's own.

    Raises:
        DualsegError: as training would of data, networks, method and starting weights; trainer, logger and callbacks
            are not built, no volume is read.
    """
    _check_start(settings, folder)

    from dualseg.training import assembly
    from dualseg.training.weights import start_from

    method = assembly.build_method(settings, assembly.build_data(settings).source)
    if settings["weights"] and _begins(settings, folder):
        start_from(settings["weights"], method, settings["weights_as"])
    for name in method.takes:
        print(f"network {name}: {sum(weight.numel() for weight in method.networks[name].parameters()):,} parameters")


def _is_to_do(settings: dict[str, Any]) -> bool:
    """Check, before torch is imported, what can be checked, and show the result of a run that is finished."""
    from dualseg.processes import rank
    from dualseg.runs.claim import check_claim
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.replaced import recover

    folder = RunFolder.of(settings)
    if rank() == 0:  # which may be writing the folder while another rank looks at it
        recover(folder.path, reading=False)
        check_claim(folder, settings)
    if _is_finished(settings, folder):
        if rank() == 0:
            _show(folder)
        return False
    _check_start(settings, folder)
    return True


def _is_finished(settings: dict[str, Any], folder: Any) -> bool:
    # `changes_length` first: after it, rank 0 may be opening the folder
    return not (settings["overwrite"] or folder.changes_length(settings)) and folder.finished


def _begins(settings: dict[str, Any], folder: Any) -> bool:
    """Training would begin rather than resume, which needs no starting weights any more."""
    return settings["overwrite"] or folder.latest_checkpoint() is None


def _check_start(settings: dict[str, Any], folder: Any) -> None:
    """Raises: DualsegError for weights or data that cannot be trained from or on, as far as it shows without torch."""
    from dualseg.training.dataset import check_data
    from dualseg.training.settings import check_weights

    if _begins(settings, folder):
        check_weights(settings)
    check_data(settings)


def train_here(settings: dict[str, Any]) -> None:
    """Train, evaluate and write the run folder of a resolved configuration in this process, alone or as a rank.

    Raises:
        DualsegError: as `train`.
        Interrupted: Ctrl-C or SIGTERM, with the command that goes on.
    """
    from dualseg.processes import rank
    from dualseg.runs.collapse import collapse_with_advice
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.lock import writing
    from dualseg.runs.replaced import settle
    from dualseg.runs.tables import poorly_found_of
    from dualseg.training.provenance import resume_command

    folder = RunFolder.of(settings)
    again = f"To go on: {resume_command()}"
    if rank() != 0:
        with resumable(again):
            _train(settings, folder)
        return
    new = not folder.path.exists() or (settings["overwrite"] and not folder.launched)
    with resumable(again), writing(folder.path):
        try:
            _train(settings, folder)
        except BaseException:
            with suppress(OSError):  # what made the run fail is what to tell; the next command tries again
                settle(folder.path)
            if new:
                folder.remove_if_bare()
            raise
    _show(folder)
    if warning := poorly_found_of(folder):
        print(f"warning: {warning}", file=sys.stderr)
    if warning := collapse_with_advice(folder.curves_file, settings["method"]):
        print(f"warning: {warning}", file=sys.stderr)


def _train(settings: dict[str, Any], folder: Any) -> None:
    from dualseg.data.checking.doubts import warnings
    from dualseg.data.checks import check_mix
    from dualseg.files import write_json
    from dualseg.machine import MemoryLimit
    from dualseg.processes import world_size
    from dualseg.runs import cases, code
    from dualseg.runs.folder import iteration_of, noted_checkpoint
    from dualseg.training import assembly, checkpoints, preprocessing, provenance
    from dualseg.training.longer import check_longer
    from dualseg.training.settings import has_twin
    from dualseg.training.trainer import build_trainer
    from dualseg.training.weights import start_from

    own_code = code.code_hashes(settings)  # before it is imported: a file may be edited while the volumes are read
    plan = Path(settings["plan"]).read_text() if "plan" in settings else None  # likewise
    latest = None if settings["overwrite"] else folder.latest_checkpoint()
    origin, before = None, []
    of_another_length = folder.changes_length(settings)
    assembly.use_threads(settings)
    data = assembly.build_data(settings)
    method = assembly.build_method(settings, data.source)
    if latest is not None:
        checkpoints.check_architecture(latest, dict(method.networks.items()), resume=True)
        if of_another_length:
            check_longer(method, folder, settings["trainer"]["max_iterations"])
    elif settings["weights"]:
        origin = start_from(settings["weights"], method, settings["weights_as"])
    along = ["validation"] if settings["trainer"]["validate_every"] else []
    stages = list(dict.fromkeys([*along, *settings["evaluate_on"]]))
    data.check_memory(
        MemoryLimit.of("data.memory", settings["data"].get("memory")),
        stages=stages,
        segmenting=partial(method.needs, on_cpu=assembly.on_cpu(settings)),
        processes=world_size() // settings["trainer"]["num_nodes"],
    )
    data.check_shared_memory(1 / settings["trainer"]["num_nodes"])
    data.setup("fit")
    if latest is not None:
        before = cases.trained_on(folder)[1:]
    elif origin:
        before = origin.trained_on()
    facts = _facts_of(data, settings["data"]["name"], stages, before)
    resumed_at = iteration_of(latest) if latest else 0
    began = bool(folder.manifest().get("compiled")) if latest else None
    compiled = assembly.compile_networks(settings, method, world_size(), began)
    if latest is not None:
        preprocessing.check_same_preparation(folder, data.source)
        provenance.check_same_data(folder.manifest_file, facts)
    trained_on = cases.as_records([facts, *before], folder.manifest_file)
    trainer = build_trainer(settings, folder, resumed_at, provenance.resume_command(), trained_on)
    data.check_processes(trainer.world_size, stages)
    if settings["augmentation"]["mix"]:
        check_mix(settings["batch"]["labeled"], trainer.world_size)
    if trainer.is_global_zero:
        folder.open(settings)
        write_json(folder.preprocessing_file, data.source.scan_record())
        manifest = {**provenance.describe(settings["seed"], facts), "started_from": before, "code": own_code}
        manifest["compiled"] = compiled
        manifest["iterations"] = settings["trainer"]["max_iterations"]  # at first, should it be trained on
        if origin:
            manifest["weights"] = noted_checkpoint(origin.checkpoint)
        provenance.start(folder.manifest_file, manifest, resumed_at, of_another_length)
        if left := data.source.not_read:
            more = f" dualseg-check names {len(left) - 1} more such." if len(left) > 1 else ""
            print(f"warning: {left[0]}{more}", file=sys.stderr)
        start = f", from the weights of {origin.checkpoint}" if origin else ""
        print(f"Resuming {folder.path} from iteration {resumed_at}" if latest else f"Training {folder.path}{start}")
        if plan is not None and not folder.plan_file.exists():
            _record_plan(plan, folder.plan_file, settings, data.split.labeled)
        if data.augmentation_note:
            print(f"note: {data.augmentation_note}", file=sys.stderr)
        for warning in warnings(data.reader.doubts):
            print(f"warning: {warning}", file=sys.stderr)
        if has_twin(settings) and not data.split.unlabeled:
            print("note: there are no unlabeled scans: trained on labels alone, by the same recipe", file=sys.stderr)
        if missing := data.classes_without_label():
            named = ", ".join(missing)
            print(f"warning: no labeled case has {named}: label one that does, or it is not learned", file=sys.stderr)
        if notes := data.reader.lost_notes():
            more = f" dualseg-check names {len(notes) - 1} more classes." if len(notes) > 1 else ""
            print(f"warning: {notes[0]}{more}", file=sys.stderr)
    with _closing_wandb(trainer, folder):
        _fit_and_evaluate(trainer, method, data, latest, settings["evaluate_on"])
        if trainer.is_global_zero:
            _write(folder, trainer, method, data)


def _record_plan(text: str, record: Path, settings: dict[str, Any], labeled: Sequence[str]) -> None:
    """Keep a copy of the plan in the run folder, since its file may be edited or deleted, and show it."""
    from dualseg.files import write_text
    from dualseg.planning.plan_file import read, shown
    from dualseg.training import assembly

    write_text(record, text)
    plan = read(record, labeled)
    print(shown(plan, settings))
    if plan.gpu is False and not assembly.on_cpu(settings):
        fix = "delete it for a new one, or give plan.memory=8GiB base_channels=16"
        print(f"note: the plan was made where there is no GPU, for a small network and patch; {fix}", file=sys.stderr)


def _facts_of(data: Any, name: str, stages: list[str], before: list[Any]) -> dict[str, Any]:
    """What the manifest says of the data, after checking that no case is scored that `before` or the run trains on.

    Args:
        name: `data.name`.
        stages: that are evaluated.
        before: what the weights that the run starts from were trained on.
    """
    from dualseg.runs import cases

    roles = data.cases_used
    counts = {role: len(names) for role, names in roles.items()}
    facts = {"dataset": name, **counts, "cases": roles, "images": data.image_hashes()}
    to_score = [case for stage in stages for case in roles[stage]]
    cases.refuse_trained(before, name, to_score, "the record of weights=...")
    evaluated = data.check_evaluation(stages, cases.images_of([facts, *before]))
    return {**facts, "fingerprint": data.fingerprint(), "evaluation_fingerprint": evaluated}


@contextmanager
def _closing_wandb(trainer: Any, folder: Any) -> Iterator[None]:
    """`logger=wandb`: results go to the W&B run when the block ends well; it is closed however the block ends."""
    from dualseg.training.wandb_logger import WandbLogger

    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    failed = True
    try:
        yield
        if trainer.is_global_zero:
            from dualseg.reporting.wandb import log_results

            for logger in loggers:
                log_results(folder.path, logger.experiment)
        failed = False
    finally:
        for logger in loggers:
            logger.close(failed)


def _fit_and_evaluate(trainer: Any, method: Any, data: Any, latest: Path | None, evaluate_on: list[str]) -> None:
    trainer.fit(method, data, ckpt_path=latest)
    method.results.clear()
    trainer.limit_val_batches = 1.0
    stages = {"validation": (trainer.validate, data.split.validation), "test": (trainer.test, data.split.test)}
    for evaluate, cases in (stages[stage] for stage in evaluate_on):
        if cases:
            evaluate(method, data, verbose=False)


def _write(folder: Any, trainer: Any, method: Any, data: Any) -> None:
    from dualseg.errors import DualsegError
    from dualseg.runs import results
    from dualseg.runs.lock import check_in_place
    from dualseg.runs.verdict import carry_from_study
    from dualseg.training import provenance
    from dualseg.training.callbacks import RunTime

    check_in_place()
    cases = {"validation": data.split.validation, "test": data.split.test}
    results.write_cases(folder.cases_file, method.results, cases)
    run_time = next(callback for callback in trainer.callbacks if isinstance(callback, RunTime))
    provenance.finish(folder.manifest_file, run_time.seconds)
    try:
        carry_from_study(folder, len(data.split.labeled))
    except DualsegError as error:
        print(f"warning: {error}", file=sys.stderr)  # what another command wrote must not end a finished training
    folder.finish(results.metrics_of(method.results, trainer.global_step, method.roles))


def _show(folder: Any) -> None:
    """Print the results, and the two commands that are next."""
    from dualseg.runs.tables import results_of

    path = shlex.quote(str(folder.path))
    print(f"Finished: {folder.path}\n{results_of(folder)}")
    print(f"To see its report:   dualseg-report run {path}")
    print(f"To segment scans:    dualseg-predict run={path} input=SCANS output=DIR report=true")


def main() -> None:
    """Console script."""
    with as_rank():
        run_with_hydra(train, "train", in_sweep=partial(run_job, train=train), out_of_memory=OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
